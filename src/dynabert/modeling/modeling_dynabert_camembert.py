"""Extracted CamemBERT encoders with fewer heads, or layers that differ in their neurons, over the stock classes."""

from transformers import (
    CamembertForMaskedLM,
    CamembertForQuestionAnswering,
    CamembertForSequenceClassification,
    CamembertForTokenClassification,
    CamembertModel,
)

from .configuration_dynabert_camembert import DynaBertCamembertConfig
from .narrow import NarrowLayers


class DynaBertCamembertModel(NarrowLayers, CamembertModel):
    """The encoder."""

    config_class = DynaBertCamembertConfig
    _auto_class = "AutoModel"


class DynaBertCamembertForSequenceClassification(NarrowLayers, CamembertForSequenceClassification):
    """The encoder with a head for one label, or one number, a text."""

    config_class = DynaBertCamembertConfig
    _auto_class = "AutoModelForSequenceClassification"


class DynaBertCamembertForTokenClassification(NarrowLayers, CamembertForTokenClassification):
    """The encoder with a head for one label a token."""

    config_class = DynaBertCamembertConfig
    _auto_class = "AutoModelForTokenClassification"


class DynaBertCamembertForQuestionAnswering(NarrowLayers, CamembertForQuestionAnswering):
    """The encoder with a head for the first and last token of an answer."""

    config_class = DynaBertCamembertConfig
    _auto_class = "AutoModelForQuestionAnswering"


class DynaBertCamembertForMaskedLM(NarrowLayers, CamembertForMaskedLM):
    """The encoder with a head that predicts masked tokens."""

    config_class = DynaBertCamembertConfig
    _auto_class = "AutoModelForMaskedLM"
