"""Extracted RoBERTa encoders with fewer heads, or layers that differ in their neurons, over the stock classes."""

from transformers import (
    RobertaForMaskedLM,
    RobertaForQuestionAnswering,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    RobertaModel,
)

from .configuration_dynabert_roberta import DynaBertRobertaConfig
from .narrow import NarrowLayers


class DynaBertRobertaModel(NarrowLayers, RobertaModel):
    """The encoder."""

    config_class = DynaBertRobertaConfig
    _auto_class = "AutoModel"


class DynaBertRobertaForSequenceClassification(NarrowLayers, RobertaForSequenceClassification):
    """The encoder with a head for one label, or one number, a text."""

    config_class = DynaBertRobertaConfig
    _auto_class = "AutoModelForSequenceClassification"


class DynaBertRobertaForTokenClassification(NarrowLayers, RobertaForTokenClassification):
    """The encoder with a head for one label a token."""

    config_class = DynaBertRobertaConfig
    _auto_class = "AutoModelForTokenClassification"


class DynaBertRobertaForQuestionAnswering(NarrowLayers, RobertaForQuestionAnswering):
    """The encoder with a head for the first and last token of an answer."""

    config_class = DynaBertRobertaConfig
    _auto_class = "AutoModelForQuestionAnswering"


class DynaBertRobertaForMaskedLM(NarrowLayers, RobertaForMaskedLM):
    """The encoder with a head that predicts masked tokens."""

    config_class = DynaBertRobertaConfig
    _auto_class = "AutoModelForMaskedLM"
