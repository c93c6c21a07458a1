"""Cut a network by plain indexing: a second opinion on what the package's own slicing keeps."""

import copy

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dynabert.families import FAMILIES
from dynabert.modeling import small_model
from dynabert.subnet import LayerSlice

NARROW = (LayerSlice(0, 2, 24), LayerSlice(1, 1, 64), LayerSlice(3, 4, 16))  # of 4 layers, 4 heads, 64 neurons
STOCK = (LayerSlice(0, 4, 32), LayerSlice(2, 4, 32))


def cut_state(model: PreTrainedModel, slices: tuple[LayerSlice, ...]) -> dict[str, Tensor]:
    """The weights of the cut network: leading rows of the maps that go in, leading columns of those that come out."""
    head_dim = model.config.hidden_size // model.config.num_attention_heads
    state = {name: tensor.clone() for name, tensor in model.state_dict().items() if ".layer." not in name}
    for new, part in enumerate(slices):
        for name, tensor in model.state_dict().items():
            if f".layer.{part.layer}." not in name:
                continue
            features = part.n_heads * head_dim
            if "attention.self." in name:
                tensor = tensor[:features]
            elif name.endswith("attention.output.dense.weight"):
                tensor = tensor[:, :features]
            elif "intermediate.dense." in name:
                tensor = tensor[: part.n_neurons]
            elif name.endswith("output.dense.weight"):
                tensor = tensor[:, : part.n_neurons]
            state[name.replace(f".layer.{part.layer}.", f".layer.{new}.")] = tensor.clone()
    return state


def cut_model(model: PreTrainedModel, slices: tuple[LayerSlice, ...], name: str = "by-hand") -> PreTrainedModel:
    """The small model of these weights, in the class that the package finds for it."""
    shape = FAMILIES[model.config.model_type].shape(model.config)
    return small_model(model, cut_state(model, slices), slices=slices, shape=shape, subnet_name=name)


@torch.no_grad()
def silenced_model(model: PreTrainedModel, slices: tuple[LayerSlice, ...]) -> PreTrainedModel:
    """The full-size network in which nothing reads the other heads and neurons, without the other layers."""
    head_dim = model.config.hidden_size // model.config.num_attention_heads
    silenced = copy.deepcopy(model)
    encoder = silenced.base_model.encoder
    encoder.layer = nn.ModuleList(encoder.layer[part.layer] for part in slices)
    for layer, part in zip(encoder.layer, slices, strict=True):
        layer.attention.output.dense.weight[:, part.n_heads * head_dim :] = 0
        layer.output.dense.weight[:, part.n_neurons :] = 0
    return silenced
