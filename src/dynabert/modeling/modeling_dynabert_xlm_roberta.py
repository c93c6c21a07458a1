"""Extracted XLM-RoBERTa encoders with fewer heads, or layers that differ in their neurons, over the stock classes."""

from transformers import (
    XLMRobertaForMaskedLM,
    XLMRobertaForQuestionAnswering,
    XLMRobertaForSequenceClassification,
    XLMRobertaForTokenClassification,
    XLMRobertaModel,
)

from .configuration_dynabert_xlm_roberta import DynaBertXLMRobertaConfig
from .narrow import NarrowLayers


class DynaBertXLMRobertaModel(NarrowLayers, XLMRobertaModel):
    """The encoder."""

    config_class = DynaBertXLMRobertaConfig
    _auto_class = "AutoModel"


class DynaBertXLMRobertaForSequenceClassification(NarrowLayers, XLMRobertaForSequenceClassification):
    """The encoder with a head for one label, or one number, a text."""

    config_class = DynaBertXLMRobertaConfig
    _auto_class = "AutoModelForSequenceClassification"


class DynaBertXLMRobertaForTokenClassification(NarrowLayers, XLMRobertaForTokenClassification):
    """The encoder with a head for one label a token."""

    config_class = DynaBertXLMRobertaConfig
    _auto_class = "AutoModelForTokenClassification"


class DynaBertXLMRobertaForQuestionAnswering(NarrowLayers, XLMRobertaForQuestionAnswering):
    """The encoder with a head for the first and last token of an answer."""

    config_class = DynaBertXLMRobertaConfig
    _auto_class = "AutoModelForQuestionAnswering"


class DynaBertXLMRobertaForMaskedLM(NarrowLayers, XLMRobertaForMaskedLM):
    """The encoder with a head that predicts masked tokens."""

    config_class = DynaBertXLMRobertaConfig
    _auto_class = "AutoModelForMaskedLM"
