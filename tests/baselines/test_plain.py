"""Networks of one size: what is trained, from whom, and that each has weights of its own."""

from dataclasses import replace

import pytest
import torch
from helpers import tiny_model
from reference import baselines as plain_reference
from reference import loop
from small_rows import batches

from dynabert.baselines import plain
from dynabert.baselines.fitting import Only, fit_subnets
from dynabert.baselines.layerdrop import whole_layers
from dynabert.distill import Training
from dynabert.elastic import ElasticModel
from dynabert.hooks import Hooks
from dynabert.measure import predict
from dynabert.recipes import RECIPES, TEACHER
from dynabert.rewire import score
from dynabert.subnet import Subnet, SubnetGrid
from dynabert.tasks import TASKS

TRAINING = Training(precision="fp32", log_every=1, seed=5, evaluate_every=1000)
SETTINGS = {"training": TRAINING, "lr": 1e-3, "budget_flops": 4e8}


def some_rows():
    return plain.TaskRows(batches(40, seed=1), batches(24, seed=2, shuffle=False), TASKS["mnli"])


class Heard(Hooks):
    def __init__(self):
        self.stages, self.reports = [], []

    def started(self, stage, n_steps, step):
        self.stages.append(stage)

    def stepped(self, report):
        self.reports.append(report)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_first_layers_learn_labels_as_a_network_of_those_layers_does(family):
    start, rows = ElasticModel(tiny_model(family, dtype=torch.float64)), some_rows()
    two = whole_layers(start.shape, range(2))
    method = plain.fine_tuned(start, rows, subnets=(two,), **SETTINGS)
    stock = plain_reference.first_layers(tiny_model(family, dtype=torch.float64), 2)
    drawn = [rows.train.at(step) for step in range(method.n_steps)]
    for _ in plain_reference.train_layers(stock, lambda step: [0, 1], drawn, n_steps=method.n_steps, lr=1e-3):
        pass
    (small,) = method.members.values()
    for (name, mine), theirs in zip(small.model.named_parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9, msg=name)


def test_first_layers_by_share():
    shape = ElasticModel(tiny_model("bert")).shape
    counts = [[part.layer for part in subnet.layers] for subnet in plain.first_layers(shape)]
    assert counts == [[0, 1, 2, 3], [0, 1, 2], [0, 1], [0]]
    assert len(plain.first_layers(shape, (0.99, 0.75))) == 1, "each number of layers comes once"


@pytest.mark.parametrize("n_layers", [3, 6, 12])
def test_the_first_layers_cost_no_more_than_their_share(n_layers):
    shape = ElasticModel(tiny_model("bert", n_layers=n_layers)).shape
    counts = {share: len(plain.first_layers(shape, (share,))[0].layers) for share in (1.0, 0.75, 0.5, 0.25, 1 / 3)}
    assert all(count <= max(1, share * n_layers + 1e-6) for share, count in counts.items())
    assert counts[1 / 3] == n_layers // 3 and counts[1.0] == n_layers


def test_distilled_sizes_have_the_loss_of_our_depth_stage_and_only_that_size_is_trained():
    teacher, heard = ElasticModel(tiny_model("bert"), SubnetGrid((1.0, 0.5), (1.0, 0.5))), Heard()
    before = [parameter.clone() for parameter in teacher.model.parameters()]
    method = plain.distilled(teacher, some_rows(), subnets=tuple(teacher.grid), hooks=heard, **SETTINGS)
    assert method.points() == ("w1-d1", "w1-d0.5", "w0.5-d1", "w0.5-d0.5")
    depth = RECIPES["two-stage"].stages[-1]
    assert all((stage.weights, stage.teacher_width) == (depth.weights, "full") for stage in heard.stages)
    assert {tuple(report.losses) for report in heard.reports} == {(point,) for point in method.points()}
    first = heard.reports[0].losses["w1-d1"]
    assert set(first) == {"logits", "embeddings", "hidden"}
    assert first["hidden"] == first["embeddings"] == 0, "each begins as its teacher"
    assert all(torch.equal(mine, old) for mine, old in zip(teacher.model.parameters(), before, strict=True))


@pytest.mark.parametrize("size", [(0.5, 0.5), (1.0, 0.5)])
def test_a_distilled_size_learns_as_in_the_plain_loop(size):
    teacher, rows = ElasticModel(tiny_model("bert", dtype=torch.float64)), some_rows()
    method = plain.distilled(teacher, rows, subnets=(Subnet(*size),), **SETTINGS | {"budget_flops": 3e8})
    assert method.n_steps > 3
    weights = RECIPES["two-stage"].stages[-1].weights
    plan = loop.Plan(
        stage="alone",
        n_steps=method.n_steps,
        subnets=lambda step: [size],
        weights=(weights.logits, weights.hidden, weights.embeddings, weights.labels),
        matching_teacher_width=False,
        published=False,
        lr=SETTINGS["lr"],
        seed=TRAINING.seed,
    )
    stock, drawn = tiny_model("bert", dtype=torch.float64), [rows.train.at(step) for step in range(method.n_steps)]
    for _ in loop.run_stage(stock, tiny_model("bert", dtype=torch.float64), drawn, plan):
        pass
    expected, origin = loop.build_cut(stock, *size)
    loop.fill(expected, origin, dict(stock.named_parameters()))
    (small,) = method.members.values()
    for (name, mine), theirs in zip(small.model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9, msg=name)


def test_sizes_take_equally_many_steps_and_share_no_weights():
    start, rows = ElasticModel(tiny_model("bert")), some_rows()
    subnets = plain.first_layers(start.shape)
    method = plain.fine_tuned(start, rows, subnets=subnets, **SETTINGS)
    assert method.training_flops <= SETTINGS["budget_flops"]
    pointers = [small.model.get_input_embeddings().weight.data_ptr() for small in method.members.values()]
    assert len(set(pointers)) == len(subnets)
    alone = ElasticModel(tiny_model("bert"))
    one = fit_subnets(
        alone,
        replace(TEACHER, name="first-layers", schedule=Only(subnets[2]), lr=1e-3),
        rows.train,
        n_steps=method.n_steps // 4,
        training=TRAINING,
    )
    assert one.n_steps == method.n_steps / 4 and one.flops < method.training_flops
    got = predict(method.members[subnets[2].name].model, rows.select)
    assert got == pytest.approx(predict(alone.at(subnets[2]), rows.select), abs=1e-5)


def test_weights_are_chosen_by_the_size_that_is_trained():
    """A score of the full network would not see what the small one learns."""
    seen = []

    class Listening(Hooks):
        def evaluated(self, stage, step, score, best):
            seen.append(score)

    teacher, rows = ElasticModel(tiny_model("bert")), some_rows()
    subnet = Subnet(0.25, 0.5)
    often = Training(precision="fp32", evaluate_every=1)
    settings = SETTINGS | {"training": often, "budget_flops": 3e7}
    method = plain.distilled(teacher, rows, subnets=(subnet,), hooks=Listening(), **settings)
    labels = [int(label) for batch in rows.select for label in batch.labels]
    ids = [int(number) for batch in rows.select for number in batch.ids]
    truth = [label for _, label in sorted(zip(ids, labels, strict=True))]
    got = predict(method.members[subnet.name].model, rows.select).argmax(1)
    assert max(seen) == pytest.approx(sum(got == truth) / len(truth), abs=1e-9)


def test_a_rewired_copy_computes_the_same_and_has_the_important_first():
    teacher, rows = ElasticModel(tiny_model("bert")), some_rows()
    copy = plain.rewired(teacher, rows.train)
    whole = [predict(elastic.at(Subnet()), rows.select) for elastic in (teacher, copy)]
    assert whole[0] == pytest.approx(whole[1], abs=1e-4)
    heads = score(copy, rows.train).heads
    assert bool((heads[:, :-1] >= heads[:, 1:] - 1e-4).all())
