"""One size of a network that lies on disk: which slices of which stored tensors make up the small model."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dynabert.description import Description
from dynabert.errors import ModelFileError
from dynabert.families import Family
from dynabert.model_files import ELASTIC, find_file
from dynabert.modeling import small_class, small_config
from dynabert.slicing import active_sizes, leading_ranges, with_all_heads, zero_other_heads
from dynabert.subnet import EncoderShape, LayerSlice, Subnet
from dynabert.weights import Stored

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Cut:
    """A Subnet of a stored encoder.

    :param name: of the Subnet.
    :param family: row of the families table.
    :param shape: the full encoder.
    :param slices: what is kept of it.
    :param pad_heads: keep the place of the heads that are cut, with weights of zero.
    """

    name: str
    family: Family
    shape: EncoderShape
    slices: tuple[LayerSlice, ...]
    pad_heads: bool = False

    @classmethod
    def of(
        cls, folder: Path, config: "PretrainedConfig", family: Family, subnet: Subnet | str, *, pad_heads: bool = False
    ) -> "Cut":
        """A Subnet of the elastic model of a folder.

        :param config: of the full model.
        :param subnet: the Subnet, or its name.
        :raises ModelFileError: not an elastic model, or a damaged one.
        :raises SettingError: a Subnet that its encoder does not have.
        """
        if config.model_type != family.model_type:
            raise ModelFileError(f"{folder} is one size already; give the folder or hub name of an elastic model")
        shape = family.shape(config)
        subnet = Subnet.parse(subnet) if isinstance(subnet, str) else subnet
        return cls(subnet.name, family, shape, described(folder, shape).slices(subnet), pad_heads)

    @property
    def room(self) -> tuple[LayerSlice, ...]:
        """What the small model has room for: the slices, or with `pad_heads` all heads of their layers."""
        return with_all_heads(self.slices, self.shape) if self.pad_heads else self.slices

    def small(self, config: "PretrainedConfig", head: str) -> "tuple[type[PreTrainedModel], PretrainedConfig]":
        """The class of the small model, and its configuration.

        :param config: of the full model.
        :param head: a name in `dynabert.modeling.HEADS`.
        """
        small = small_config(config, self.family, self.shape, self.room, subnet_name=self.name, head=head)
        return small_class(self.family, head, self.shape, self.room), small

    def wanted(self, stored: Mapping[str, Stored]) -> dict[str, Stored]:
        """Of the tensors of the full model those of the small one, by their new names, to be read in part only.

        :param stored: the tensors of a checkpoint, see `dynabert.weights.open_weights`.
        """
        prefix = f"{self.family.layers}."
        wanted = {key: tensor for key, tensor in stored.items() if not key.startswith(prefix)}
        for number, part in enumerate(self.room):
            old = f"{prefix}{part.layer}."
            layer = {key.removeprefix(old): tensor for key, tensor in stored.items() if key.startswith(old)}
            for projection in self.family.projections:
                weight, bias = (f"{projection.path}.{name}" for name in ("weight", "bias"))
                n_full, n_inputs = layer[weight].full
                n_out, n_in = active_sizes((n_full, n_inputs), projection, part, self.shape)
                rows, columns = leading_ranges(n_full, n_out, projection.parts), leading_ranges(n_inputs, n_in)
                layer[weight] = replace(layer[weight], ranges=(rows, columns))
                if bias in layer:
                    layer[bias] = replace(layer[bias], ranges=(rows,))
            wanted |= {f"{prefix}{number}.{key}": tensor for key, tensor in layer.items()}
        return wanted

    def finish(self, model: "PreTrainedModel") -> None:
        """Put zeros, in place, where the room of a cut head is kept."""
        if self.pad_heads:
            layers = model.base_model.get_submodule(self.family.layers).children()
            zero_other_heads(layers, self.family, self.slices, self.shape)


def described(folder: Path, shape: EncoderShape) -> Description:
    """The sizes of the elastic model of a folder.

    :raises ModelFileError: it is none, or its `elastic.json` is damaged.
    """
    path = find_file(folder, ELASTIC)
    if path is None:
        raise ModelFileError(
            f"{folder} has no {ELASTIC}, so no size can be cut out of it; give a run folder, or the folder or hub "
            f"name of an elastic model"
        )
    return Description.read(path, shape)
