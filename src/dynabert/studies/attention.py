"""The attention maps of a network at any size."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dynabert.elastic import ElasticModel
from dynabert.subnet import Subnet

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Maps = tuple[Tensor, ...]
"""Attention probabilities of each executed layer, (batch, heads, seq, seq): queries, then keys."""


def attention_maps(
    elastic: ElasticModel, inputs: Mapping[str, Tensor], subnets: Iterable[Subnet]
) -> dict[Subnet, Maps]:
    """The attention maps of every head of some Subnets, in eval mode. The model and its views stay as they are.

    :param elastic: the network, with or without a task head.
    :param inputs: what the model's forward takes, (batch, seq) each; on any device.
    :param subnets: which.
    :return: for each Subnet one tensor (batch, heads kept, seq, seq) a layer, on the model's device. Rows sum to 1;
        those of padding tokens mean nothing.
    """
    return {subnet: _maps(_eager_view(elastic, subnet), inputs) for subnet in subnets}


def _eager_view(elastic: ElasticModel, subnet: Subnet) -> "PreTrainedModel":
    """A view of its own: the cached ones keep their attention, and transformers hangs its hooks on this one alone."""
    view = elastic.make_view(elastic.slices(subnet)).eval()
    view.set_attn_implementation("eager")  # the only one that gives its probabilities
    return view


def _maps(view: "PreTrainedModel", inputs: Mapping[str, Tensor]) -> Maps:
    with torch.no_grad():
        moved = {name: tensor.to(view.device) for name, tensor in inputs.items()}
        return tuple(view.base_model(**moved, output_attentions=True).attentions)
