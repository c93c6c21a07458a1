"""Configuration of an extracted XLM-RoBERTa encoder with fewer heads, or with layers that differ in their neurons."""

from transformers import XLMRobertaConfig

from .narrow import auto_map, complete


class DynaBertXLMRobertaConfig(XLMRobertaConfig):
    """The stock configuration of the original encoder, with as many layers as are kept, and the sizes of each.

    :param head_dim: features of one head.
    :param kept: for each layer [heads, neurons]; the original counts stay in the stock fields.
    :param subnet: name of the Subnet that the model was cut to, for the record.
    :raises ValueError: sizes that cannot be.
    """

    model_type = "dynabert-xlm-roberta"

    head_dim: int | None = None
    kept: list[list[int]] | None = None
    subnet: str | None = None

    def __post_init__(self, **kwargs: object) -> None:
        """Check the sizes, and say where the classes lie so that a folder can be loaded without dynabert."""
        kwargs.setdefault("auto_map", auto_map("xlm_roberta", "DynaBertXLMRoberta"))
        super().__post_init__(**kwargs)
        complete(self)
