"""LayerDrop: which layers a step runs, what training then does, and which layers are kept afterwards."""

from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from helpers import TinyBatches, tiny_model
from reference import baselines as plain
from small_rows import batches

from dynabert import precision
from dynabert.baselines import layerdrop
from dynabert.baselines.layerdrop import LayerDrop, every_other, validated, whole_layers
from dynabert.distill import Training, train_stage
from dynabert.elastic import ElasticModel
from dynabert.errors import SettingError
from dynabert.hooks import Hooks
from dynabert.measure import labels_of, predict
from dynabert.precision import TrainingViews
from dynabert.recipes import TEACHER
from dynabert.subnet import Subnet
from dynabert.tasks import TASKS

TRAINING = Training(precision="fp32", log_every=1, seed=5)
MNLI = TASKS["mnli"]


def layers_of(subnet):
    return [part.layer for part in subnet.layers]


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.5, 0.9])
def test_the_layers_of_a_step_are_those_of_the_reference(rate):
    elastic = ElasticModel(tiny_model("bert"))
    schedule = LayerDrop(elastic.shape, rate)
    for step in range(50):
        (subnet,) = schedule.subnets(elastic.grid, 7, step)
        assert layers_of(subnet) == plain.kept_layers(7, step, 4, rate)
        assert all((part.n_heads, part.n_neurons) == (4, 64) for part in subnet.layers)


def test_layers_are_skipped_independently_at_the_rate():
    shape = ElasticModel(tiny_model("bert")).shape
    schedule = LayerDrop(shape, 0.2)
    kept = [layers_of(schedule.subnets(None, 1, step)[0]) for step in range(2000)]
    counts = Counter(layer for layers in kept for layer in layers)
    assert all(counts[layer] / 2000 == pytest.approx(0.8, abs=0.03) for layer in range(4))
    both = sum({0, 1} <= set(layers) for layers in kept) / 2000
    assert both == pytest.approx(0.64, abs=0.03)


def test_one_layer_is_always_run_and_rates_are_probabilities():
    shape = ElasticModel(tiny_model("bert")).shape
    counts = Counter(len(layers_of(LayerDrop(shape, 0.99).subnets(None, 1, step)[0])) for step in range(200))
    assert min(counts) == 1 and counts[1] > 180
    with pytest.raises(SettingError, match=r"1\.0 is a probability below 1"):
        LayerDrop(shape, 1.0)


class Losses(Hooks):
    def __init__(self):
        self.losses = []

    def stepped(self, report):
        self.losses += [terms["labels"] for terms in report.losses.values()]


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_training_is_that_of_the_reference(family):
    elastic, heard = ElasticModel(tiny_model(family, dtype=torch.float64)), Losses()
    stage = replace(TEACHER, schedule=LayerDrop(elastic.shape, 0.5), lr=1e-3, epochs=2)
    train_stage(elastic, stage, TinyBatches(4), training=TRAINING, hooks=heard)
    stock = tiny_model(family, dtype=torch.float64)
    expected = plain.train_layers(
        stock, lambda step: plain.kept_layers(5, step, 4, 0.5), TinyBatches(4).list, n_steps=8, lr=1e-3
    )
    assert heard.losses == pytest.approx(list(expected), rel=1e-10)
    for (name, mine), theirs in zip(elastic.model.named_parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.parametrize(("n_layers", "n_kept"), [(12, 9), (12, 6), (12, 8), (12, 11), (6, 4), (6, 3), (24, 12)])
def test_every_other_drops_the_layers_that_the_paper_says(n_layers, n_kept):
    period = round(1 / (1 - n_kept / n_layers))
    dropped = [d for d in range(1, n_layers + 1) if d % period == 0]
    assert [layer + 1 for layer in every_other(n_layers, n_kept)] == [
        d for d in range(1, n_layers + 1) if d not in dropped
    ]


@pytest.mark.parametrize("n_layers", [1, 4, 6, 7, 12])
def test_every_other_keeps_as_many_as_asked_for(n_layers):
    for n_kept in range(1, n_layers + 1):
        layers = every_other(n_layers, n_kept)
        assert len(set(layers)) == n_kept and layers[0] == 0 and max(layers) < n_layers
    assert every_other(12, 3) == (0, 4, 8)


def test_validated_layers_are_never_worse_than_every_other_on_the_held_out_rows():
    elastic = ElasticModel(tiny_model("bert"))
    select = batches(24, seed=2, shuffle=False)
    labels = labels_of(select)

    def accuracy(layers):
        return np.mean(predict(elastic.at(whole_layers(elastic.shape, layers)), select).argmax(1) == labels)

    chosen = validated(elastic, [4, 3, 1], select, MNLI)
    assert list(chosen) == [4, 3, 1] and [len(subnet.layers) for subnet in chosen.values()] == [4, 3, 1]
    for n_kept, subnet in chosen.items():
        assert accuracy(layers_of(subnet)) >= accuracy(every_other(4, n_kept))
    best = max(accuracy(layers) for layers in combinations(range(4), 3))
    assert accuracy(layers_of(chosen[3])) == best, "the first layer that leaves is tried out in full"


def test_a_method_has_every_number_of_layers_and_leaves_its_start_alone():
    start = ElasticModel(tiny_model("roberta"))
    before = [parameter.clone() for parameter in start.model.parameters()]
    method = layerdrop.train(
        start,
        batches(40, seed=1),
        select=batches(24, seed=2, shuffle=False),
        task=MNLI,
        training=TRAINING,
        lr=1e-3,
        budget_flops=4e8,
    )
    select = batches(24, seed=2, shuffle=False)
    again = layerdrop.with_validated_layers(method, select, MNLI, name="layerdrop-validated")
    assert again.name == "layerdrop-validated" and again.elastic is method.elastic
    for each in (method, again):
        assert [len(Subnet.parse(point).layers) for point in each.points()] == [4, 3, 2, 1]
    evenly = layerdrop.with_every_other_layer(again, name="layerdrop")
    assert evenly.points() == method.points()
    scores = [
        [np.mean(m.predict(p, select).logits.argmax(1) == labels_of(select)) for p in m.points()]
        for m in (again, method)
    ]
    assert all(mine >= theirs for mine, theirs in zip(*scores, strict=True))
    assert all(torch.equal(mine, old) for mine, old in zip(start.model.parameters(), before, strict=True))
    assert method.training_flops <= 4e8 and method.n_steps > 5


def test_weights_are_chosen_by_all_numbers_of_layers():
    """A score of the full network would not see what layers fewer than all have learned."""
    seen = []

    class Listening(Hooks):
        def evaluated(self, stage, step, score, best):
            seen.append(score)

    select = batches(24, seed=2, shuffle=False)
    method = layerdrop.train(
        ElasticModel(tiny_model("bert")),
        batches(40, seed=1),
        select=select,
        task=MNLI,
        training=replace(TRAINING, evaluate_every=1),
        lr=1e-3,
        budget_flops=2e8,
        rate=0.5,
        hooks=Listening(),
    )
    right = [method.predict(point, select).logits.argmax(1) == labels_of(select) for point in method.points()]
    assert len(right) == 4 and max(seen) == pytest.approx(np.mean(right))


def test_the_training_is_the_same_by_any_name():
    rows = {"select": batches(24, seed=2, shuffle=False), "task": MNLI}
    settings = {"training": TRAINING, "lr": 1e-3, "budget_flops": 4e8}
    one, two = (
        layerdrop.train(
            ElasticModel(tiny_model("bert", dropout=0.1)), batches(40, seed=1), **rows, **settings, **chosen
        )
        for chosen in ({}, {"name": "layerdrop-validated"})
    )
    for mine, theirs in zip(one.elastic.model.parameters(), two.elastic.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_views_of_many_layers_do_not_pile_up(monkeypatch):
    monkeypatch.setattr(precision, "VIEWS_KEPT", 3)
    elastic = ElasticModel(tiny_model("bert", hidden=16, n_neurons=16))
    views, subnets = TrainingViews(elastic), [whole_layers(elastic.shape, [layer]) for layer in range(4)]
    first, *_ = [views.at(subnet) for subnet in subnets[:3]]
    assert views.at(subnets[0]) is first
    views.at(subnets[3])
    assert views.at(subnets[0]) is first, "the one that was not used for longest has gone"
    assert list(views._views) == [subnets[2], subnets[3], subnets[0]]
