"""Where each architecture keeps its layers, heads and neurons: rows of data, no code per family.

A `Projection` says which axis of a linear map is made of heads or of neurons. Slicing, importance, rewiring, extraction
and counting all read the same rows, so a new family is a new row.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dynabert.errors import SettingError, one_of
from dynabert.subnet import EncoderShape

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Unit = Literal["heads", "neurons"]
"""What an axis of a weight is made of: heads (head_dim features each) or feed-forward neurons (one feature each)."""


@dataclass(frozen=True)
class Projection:
    """One linear map of a layer, weight of shape (out, in).

    :param path: its place inside one layer.
    :param rows: what its outputs are made of, or None where they are the hidden features, which are never cut.
    :param columns: what its inputs are made of, or None likewise.
    :param parts: equal blocks stacked along the outputs: 3 for a fused query-key-value, 2 for a gated feed-forward.
    """

    path: str
    rows: Unit | None = None
    columns: Unit | None = None
    parts: int = 1


@dataclass(frozen=True)
class Family:
    """One architecture.

    :param model_type: the `model_type` of its Hugging Face configuration.
    :param classes: prefix of its classes in transformers: ``Bert`` of ``BertModel``.
    :param layers: place of the layer list inside the base model.
    :param projections: the linear maps of one layer that heads and neurons run through.
    :param feed_forward: plain, or gated (two input matrices).
    """

    model_type: str
    classes: str
    layers: str
    projections: tuple[Projection, ...]
    feed_forward: Literal["plain", "gated"] = "plain"

    @property
    def narrow_model_type(self) -> str:
        """The `model_type` of an extracted model whose heads were cut, see `dynabert.modeling`."""
        return f"dynabert-{self.model_type}"

    def shape(self, config: "PretrainedConfig") -> EncoderShape:
        """Sizes of the full encoder that a configuration describes."""
        return EncoderShape(
            n_layers=config.num_hidden_layers,
            n_heads=config.num_attention_heads,
            head_dim=config.hidden_size // config.num_attention_heads,
            hidden=config.hidden_size,
            n_neurons=config.intermediate_size,
            feed_forward=self.feed_forward,
        )

    def consuming(self, unit: Unit) -> Projection:
        """The projection that sums over heads (the attention output) or over neurons (the feed-forward output).

        Its input is where heads and neurons can be told apart, so importance is measured there.
        """
        return next(projection for projection in self.projections if projection.columns == unit)


_BERT_LAYER = (
    Projection("attention.self.query", rows="heads"),
    Projection("attention.self.key", rows="heads"),
    Projection("attention.self.value", rows="heads"),
    Projection("attention.output.dense", columns="heads"),
    Projection("intermediate.dense", rows="neurons"),
    Projection("output.dense", columns="neurons"),
)

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family("bert", "Bert", "encoder.layer", _BERT_LAYER),
        Family("roberta", "Roberta", "encoder.layer", _BERT_LAYER),
        Family("xlm-roberta", "XLMRoberta", "encoder.layer", _BERT_LAYER),
        Family("camembert", "Camembert", "encoder.layer", _BERT_LAYER),
    )
}
"""The known families, by `model_type`."""


def family_of(model_type: str) -> Family:
    """The row of an architecture.

    :raises SettingError: a family that is not in the table; the message names the known ones.
    """
    if model_type not in FAMILIES:
        raise SettingError(one_of("model family", model_type, FAMILIES, hint="Choose a checkpoint of a known family"))
    return FAMILIES[model_type]
