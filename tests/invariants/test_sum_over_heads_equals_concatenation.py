"""A layer is a sum over heads and a sum over neurons, so any of them can be left out and their order is free."""

import math

import pytest
import torch
from helpers import FAMILY_NAMES, tiny_batch, tiny_model

from dynabert.families import family_of

HIDDEN, N_HEADS, N_NEURONS, N_LAYERS = 32, 4, 48, 3
HEAD_DIM = HIDDEN // N_HEADS
BATCH = tiny_batch()
VISIBLE = BATCH.inputs["attention_mask"].bool()[:, None, :]  # (batch, 1, seq): which keys a query sees


def record(model, paths):
    """Inputs and outputs of submodules during one forward pass, by path."""
    seen = {}
    for path in paths:
        model.get_submodule(path).register_forward_hook(
            lambda module, args, output, path=path: seen.__setitem__(path, (args[0], output))
        )
    with torch.no_grad():
        model(**BATCH.inputs)
    return seen


def one_head(attention, states, head):
    """Output of one head (batch, seq, head_dim), from the hidden states (batch, seq, hidden) and its rows alone."""
    rows = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
    linears = (attention.query, attention.key, attention.value)
    query, key, value = (states @ linear.weight[rows].T + linear.bias[rows] for linear in linears)
    scores = query @ key.transpose(1, 2) / math.sqrt(HEAD_DIM)
    return scores.masked_fill(~VISIBLE, -math.inf).softmax(-1) @ value


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_attention_is_the_sum_over_its_heads(family, attention):
    model = tiny_model(
        family, attention=attention, dtype=torch.float64, n_layers=N_LAYERS, hidden=HIDDEN, n_neurons=N_NEURONS
    )
    base = f"{model.base_model_prefix}.{family_of(family).layers}"
    paths = [f"{base}.{layer}.attention.{part}" for layer in range(N_LAYERS) for part in ("self.query", "output.dense")]
    seen = record(model, paths)
    for layer in range(N_LAYERS):
        module = model.get_submodule(f"{base}.{layer}.attention")
        states, _ = seen[f"{base}.{layer}.attention.self.query"]
        _, expected = seen[f"{base}.{layer}.attention.output.dense"]
        output = module.output.dense
        total = output.bias.expand_as(expected)
        for head in range(N_HEADS):
            columns = output.weight[:, head * HEAD_DIM : (head + 1) * HEAD_DIM]
            total = total + one_head(module.self, states, head) @ columns.T
        torch.testing.assert_close(total, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_feed_forward_is_the_sum_over_its_neurons(family):
    model = tiny_model(family, dtype=torch.float64, n_layers=N_LAYERS, hidden=HIDDEN, n_neurons=N_NEURONS)
    base = f"{model.base_model_prefix}.{family_of(family).layers}"
    paths = [f"{base}.{layer}.{part}" for layer in range(N_LAYERS) for part in ("intermediate.dense", "output.dense")]
    seen = record(model, paths)
    for layer in range(N_LAYERS):
        module = model.get_submodule(f"{base}.{layer}")
        states, _ = seen[f"{base}.{layer}.intermediate.dense"]
        _, expected = seen[f"{base}.{layer}.output.dense"]
        into, out = module.intermediate.dense, module.output.dense
        total = out.bias.expand_as(expected)
        for neuron in range(N_NEURONS):
            entering = states @ into.weight[neuron] + into.bias[neuron]
            activation = entering * (1 + torch.erf(entering / math.sqrt(2))) / 2
            total = total + activation[..., None] * out.weight[:, neuron]
        torch.testing.assert_close(total, expected, rtol=0, atol=1e-10)
