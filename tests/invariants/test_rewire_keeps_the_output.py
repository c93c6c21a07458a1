"""Rewiring is a permutation: every head and neuron order gives the same logits and hidden states."""

import pytest
import torch
from helpers import FAMILY_NAMES, tiny_batch, tiny_model

from dynabert.elastic import ElasticModel
from dynabert.rewire import Importance, permute, rewire

SIZES = {"n_layers": 3, "hidden": 32, "n_neurons": 48}
N_LAYERS, N_HEADS, N_NEURONS = 3, 4, 48


def random_orders(n_units, generator):
    return torch.stack([torch.randperm(n_units, generator=generator) for _ in range(N_LAYERS)])


def by_score(elastic, generator):
    heads = torch.rand(N_LAYERS, N_HEADS, generator=generator)
    rewire(elastic, Importance(heads, torch.rand(N_LAYERS, N_NEURONS, generator=generator), "random"))


def at_random(elastic, generator):
    permute(elastic, random_orders(N_HEADS, generator), random_orders(N_NEURONS, generator))


def reversed_order(elastic, _):
    permute(elastic, *(torch.arange(n).flip(0).expand(N_LAYERS, -1) for n in (N_HEADS, N_NEURONS)))


@pytest.mark.parametrize("reorder", [by_score, at_random, reversed_order])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_logits_and_every_hidden_state_stay(family, attention, training, reorder):
    model = tiny_model(family, attention=attention, dtype=torch.float64, **SIZES).train(training)
    elastic = ElasticModel(model)
    batch = tiny_batch()
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    with torch.no_grad():
        before = model(**batch.inputs, output_hidden_states=True)
        reorder(elastic, torch.Generator().manual_seed(1))
        after = model(**batch.inputs, output_hidden_states=True)
    torch.testing.assert_close(after.logits, before.logits, rtol=0, atol=1e-10)
    assert len(after.hidden_states) == N_LAYERS + 1
    for got, expected in zip(after.hidden_states, before.hidden_states, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)

    changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, weights[name])}
    per_layer = 3 * 2 + 1 + 2 + 1  # query, key, value with biases; attention output; intermediate with bias; output
    assert len(changed) == N_LAYERS * per_layer
