"""Which part of a weight is active: the one rule by which views slice, extraction copies and files are read.

The rule gives ranges along an axis. A tensor in memory takes them as a view (`leading`), a tensor in a file is read by
them (`dynabert.weights.Stored`), so a size is the same size wherever it is cut.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dynabert.families import Family, Projection, Unit
from dynabert.subnet import EncoderShape, LayerSlice

if TYPE_CHECKING:
    from torch import nn

Ranges = tuple[slice, ...]
"""Ascending ranges along one axis, none of them empty."""


def leading_ranges(length: int, size: int, parts: int = 1) -> Ranges:
    """The leftmost `size` entries of an axis, in each of `parts` equal blocks of it.

    :param length: entries of the axis.
    :param size: entries kept in each block.
    :param parts: blocks stacked along that axis: 1 for a plain weight, 3 for fused query-key-value, 2 for gated inputs.
    :raises ValueError: blocks that are not equal, or smaller than what is to be kept of them.
    """
    block, rest = divmod(length, parts)
    if rest or not 0 < size <= block:
        raise ValueError(f"cannot keep {size} of each of {parts} equal blocks of {length}")
    return tuple(slice(start, start + size) for start in range(0, length, block))


def leading(tensor: Tensor, size: int, dim: int, parts: int = 1) -> Tensor:
    """The entries of a tensor that `leading_ranges` names along an axis.

    :param tensor: any tensor.
    :param size: entries kept in each block.
    :param dim: the axis.
    :param parts: blocks stacked along that axis, see `leading_ranges`.
    :return: a view of the tensor where `parts` is 1; otherwise the kept entries of the blocks, block after block.
    """
    length = tensor.shape[dim]
    if parts == 1 and 0 < size <= length:  # every call of a view comes by here: as few steps as can be
        return tensor.narrow(dim, 0, size)
    return torch.cat([tensor.narrow(dim, part.start, size) for part in leading_ranges(length, size, parts)], dim)


def active_sizes(
    full: tuple[int, int], projection: Projection, part: LayerSlice, shape: EncoderShape
) -> tuple[int, int]:
    """Outputs kept in each block, and inputs kept, of a linear map of one layer.

    :param full: its shape (out, in) in the full encoder.
    :param projection: its row of the families table.
    :param part: what is kept of the layer.
    :param shape: the full encoder.
    """
    sizes: dict[Unit, int] = {"heads": part.n_heads * shape.head_dim, "neurons": part.n_neurons}
    n_out = sizes[projection.rows] if projection.rows else full[0] // projection.parts
    n_in = sizes[projection.columns] if projection.columns else full[1]
    return n_out, n_in


def with_all_heads(slices: tuple[LayerSlice, ...], shape: EncoderShape) -> tuple[LayerSlice, ...]:
    """The same slices with every head: the room that `zero_other_heads` fills with zeros."""
    return tuple(replace(part, n_heads=shape.n_heads) for part in slices)


@torch.no_grad()
def zero_other_heads(
    layers: "Iterable[nn.Module]", family: Family, slices: tuple[LayerSlice, ...], shape: EncoderShape
) -> None:
    """Set to zero, in layers with room for all heads, those that are cut: they then answer as layers without them.

    :param layers: of a dense model, one for each slice; changed in place.
    :param family: its row of the families table.
    :param slices: what is really kept.
    :param shape: the full encoder.
    """
    for layer, part in zip(layers, slices, strict=True):
        n_features = part.n_heads * shape.head_dim
        for projection in family.projections:
            linear = layer.get_submodule(projection.path)
            if projection.rows == "heads":
                for tensor in linear.parameters(recurse=False):
                    tensor.unflatten(0, (projection.parts, -1))[:, n_features:] = 0
            elif projection.columns == "heads":
                linear.get_parameter("weight")[:, n_features:] = 0
