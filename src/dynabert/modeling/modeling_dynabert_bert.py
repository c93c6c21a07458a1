"""Extracted BERT encoders with fewer heads, or layers that differ in their neurons, over the stock classes."""

from transformers import (
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
)

from .configuration_dynabert_bert import DynaBertBertConfig
from .narrow import NarrowLayers


class DynaBertBertModel(NarrowLayers, BertModel):
    """The encoder."""

    config_class = DynaBertBertConfig
    _auto_class = "AutoModel"


class DynaBertBertForSequenceClassification(NarrowLayers, BertForSequenceClassification):
    """The encoder with a head for one label, or one number, a text."""

    config_class = DynaBertBertConfig
    _auto_class = "AutoModelForSequenceClassification"


class DynaBertBertForTokenClassification(NarrowLayers, BertForTokenClassification):
    """The encoder with a head for one label a token."""

    config_class = DynaBertBertConfig
    _auto_class = "AutoModelForTokenClassification"


class DynaBertBertForQuestionAnswering(NarrowLayers, BertForQuestionAnswering):
    """The encoder with a head for the first and last token of an answer."""

    config_class = DynaBertBertConfig
    _auto_class = "AutoModelForQuestionAnswering"


class DynaBertBertForMaskedLM(NarrowLayers, BertForMaskedLM):
    """The encoder with a head that predicts masked tokens."""

    config_class = DynaBertBertConfig
    _auto_class = "AutoModelForMaskedLM"
