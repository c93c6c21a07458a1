"""Ramps of DeeBERT and heads of FastBERT learn, step for step, as a slow reference does; nothing beneath them moves."""

import copy

import pytest
import torch
from helpers import TinyBatches, tiny_batch, tiny_model
from reference import baselines as plain
from small_rows import batches

from dynabert.baselines import deebert, fastbert
from dynabert.baselines.ramps import made, selection_score, train_ramps
from dynabert.distill import Training
from dynabert.elastic import ElasticModel
from dynabert.errors import NonFiniteError, SettingError
from dynabert.exits import EarlyExit
from dynabert.hooks import Hooks
from dynabert.losses import soft_cross_entropy
from dynabert.measure import labels_of
from dynabert.recipes import TEACHER
from dynabert.subnet import Subnet
from dynabert.tasks import TASKS
from dynabert.workload import StepRows, forward_flops

KINDS = {
    "deebert": (deebert.PoolerRamp, deebert.labels_loss, plain.deebert_ramp),
    "fastbert": (fastbert.StudentHead, fastbert.teacher_loss, plain.fastbert_head),
}
TRAINING = Training(precision="fp32", log_every=1, seed=5)
N_STEPS, LR = 5, 1e-2


class Losses(Hooks):
    """Keeps the loss of every ramp at every step."""

    def __init__(self):
        self.steps = []

    def stepped(self, report):
        self.steps.append([terms["ramp"] for terms in report.losses.values()])


def double(family, **changes):
    return ElasticModel(tiny_model(family, dtype=torch.float64, **changes))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_losses_and_weights_are_those_of_the_reference(family, kind):
    make, loss, ramp_of = KINDS[kind]
    elastic, batches, heard = double(family), TinyBatches(4), Losses()
    ramps = made(elastic, Subnet(), make, seed=1).double()
    copies = [{name: p.detach().clone() for name, p in ramp.named_parameters()} for ramp in ramps]
    stage = TEACHER_FOR_FIVE_STEPS
    train_ramps(elastic, stage, ramps, batches, loss=loss, training=TRAINING, hooks=heard)
    stock = tiny_model(family, dtype=torch.float64)
    distil = kind == "fastbert"
    expected = list(
        plain.train_ramps(stock, copies, ramp_of, batches.list, distil=distil, n_steps=N_STEPS, lr=LR, largest=1.0)
    )
    assert len(heard.steps) == N_STEPS
    for mine, theirs in zip(heard.steps, expected, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-6)  # reported in float32
    for ramp, weights in zip(ramps, copies, strict=True):
        for name, parameter in ramp.named_parameters():
            torch.testing.assert_close(parameter, weights[name], rtol=1e-6, atol=1e-8)  # clip adds 1e-6 to the norm


TEACHER_FOR_FIVE_STEPS = type(TEACHER)(
    "ramps", "full", TEACHER.weights, teacher="none", epochs=N_STEPS / len(TinyBatches(4)), lr=LR
)


@pytest.mark.parametrize("module", [deebert, fastbert])
def test_the_network_beneath_stays_as_it_is_and_a_size_can_have_ramps(module):
    elastic = ElasticModel(tiny_model("bert", dropout=0.1))
    before = copy.deepcopy(elastic.model.state_dict())
    subnet = Subnet(0.5, 0.75)
    method = module.train(elastic, TinyBatches(), training=TRAINING, lr=LR, budget_flops=1e9, subnet=subnet)
    assert all(torch.equal(tensor, before[name]) for name, tensor in elastic.model.state_dict().items())
    assert all(parameter.grad is None for parameter in elastic.model.parameters())
    assert len(method.ramps) == 2 and not method.ramps.training
    assert all(point.startswith("w0.5-d0.75@s") for point in method.points())


@pytest.mark.parametrize("module", [deebert, fastbert])
def test_the_ramps_end_as_they_scored_best(module):
    elastic, seen, weights = ElasticModel(tiny_model("bert")), [], []
    scores = iter([0.2, 0.9, 0.9, 0.4])

    def evaluate(exits):
        seen.append(exits.all_exits(TinyBatches().list).shape)
        weights.append(torch.cat([parameter.detach().flatten().clone() for parameter in exits.ramps.parameters()]))
        return next(scores)

    method = module.train(elastic, TinyBatches(), training=TRAINING, lr=LR, budget_flops=1e9, evaluate=evaluate)
    assert len(seen) == 4 and len({shape[0] for shape in seen}) == 1 and seen[0][0] == 4
    ended = torch.cat([parameter.flatten() for parameter in method.ramps.parameters()])
    assert torch.equal(ended, weights[2]) and not torch.equal(ended, weights[3])
    assert not torch.equal(ended, weights[1]), "of equal scores the later"


def test_ramps_are_scored_by_the_mean_of_their_metric_without_the_task_head():
    rows, task = batches(24, seed=2, shuffle=False), TASKS["mnli"]
    elastic = ElasticModel(tiny_model("bert"))
    exits = EarlyExit(elastic.at(Subnet()), elastic.family, deebert.new_ramps(elastic, seed=0))
    exits.ramps.train()
    right = (exits.all_exits(rows).argmax(2) == labels_of(rows)).mean(axis=1)
    assert selection_score(rows, task)(exits) == pytest.approx(right[:-1].mean())
    assert exits.ramps.training, "it is left as it was"


@pytest.mark.parametrize("module", [deebert, fastbert])
def test_training_is_a_function_of_the_seed(module):
    elastic = ElasticModel(tiny_model("bert", dropout=0.1))

    def weights(seed):
        method = module.train(elastic, TinyBatches(), training=Training(seed=seed), lr=LR, budget_flops=1e9)
        return torch.cat([parameter.flatten() for parameter in method.ramps.parameters()])

    torch.manual_seed(1)
    first = weights(3)
    torch.manual_seed(2)
    assert torch.equal(first, weights(3))
    assert not torch.equal(first, weights(4))


def test_poolers_start_from_the_models_where_it_has_one():
    bert, roberta = ElasticModel(tiny_model("bert")), ElasticModel(tiny_model("roberta"))
    for ramp in deebert.new_ramps(bert, seed=0):
        assert torch.equal(ramp.dense.weight, bert.model.bert.pooler.dense.weight)
    other = tiny_model("bert", seed=9)
    assert torch.equal(deebert.new_ramps(bert, pooler_of=other, seed=0)[2].dense.bias, other.bert.pooler.dense.bias)
    first, second = deebert.new_ramps(roberta, seed=0)[:2]
    assert not torch.equal(first.dense.weight, second.dense.weight)
    assert float(first.dense.weight.detach().std()) == pytest.approx(0.02, rel=0.1)


def test_fastbert_needs_no_labels_and_deebert_says_so():
    class Unlabelled(TinyBatches):
        def at(self, step):
            return type(batch := super().at(step))(batch.inputs, None, batch.ids)

    elastic = ElasticModel(tiny_model("bert"))
    settings = {"training": TRAINING, "lr": LR, "budget_flops": 1e9}
    fastbert.train(elastic, Unlabelled(), **settings)
    with pytest.raises(SettingError, match="choose fastbert"):
        deebert.train(elastic, Unlabelled(), **settings)


@pytest.mark.parametrize("module", [deebert, fastbert])
def test_a_regression_is_refused_before_training(module):
    with pytest.raises(SettingError, match="regression"):
        module.train(
            ElasticModel(tiny_model("bert", n_labels=1)), TinyBatches(), training=TRAINING, lr=LR, budget_flops=1e9
        )


def test_the_kl_of_fastbert_has_the_gradients_of_the_soft_cross_entropy_and_is_0_at_the_teacher():
    random = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(4, 3, generator=random, dtype=torch.float64) for _ in range(2))
    student.requires_grad_()
    loss = fastbert.teacher_loss(student, teacher, None, 4)
    assert float(loss.detach()) == pytest.approx(float(plain.kl(student, teacher).detach()), rel=1e-12)
    (grad,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(grad, torch.autograd.grad(soft_cross_entropy(student, teacher, 4), student)[0])
    assert abs(float(fastbert.teacher_loss(teacher, teacher, None, 4))) < 1e-12


@pytest.mark.parametrize("module", [deebert, fastbert])
def test_a_budget_pays_the_frozen_network_and_three_passes_of_the_ramps(module):
    elastic, batches = ElasticModel(tiny_model("bert")), TinyBatches()
    rows = StepRows.of(batches)
    new = module.train(elastic, batches, training=TRAINING, lr=LR, budget_flops=1e8)
    step = forward_flops(elastic, Subnet(), rows) + 3 * rows.n_rows * sum(ramp.flops(rows.seq) for ramp in new.ramps)
    assert new.n_steps == int(1e8 / step) and new.training_flops == new.n_steps * step <= 1e8
    with pytest.raises(SettingError, match="does not pay one training step"):
        module.train(elastic, batches, training=TRAINING, lr=LR, budget_flops=1e5)


def test_flops_of_ramps_by_hand():
    config = tiny_model("bert").config  # hidden 64, 3 labels
    assert deebert.PoolerRamp(config).flops(128) == 2 * (64 * 64 + 64 * 3)
    each, first = 64 * 128 + 2 * 128 * 128, 3 * 128 * 128 + 128 * 3
    assert fastbert.StudentHead(config).flops(10) == 2 * (10 * each + first + 2 * 10 * 128)


def test_nan_is_left_out_and_then_named():
    elastic = ElasticModel(tiny_model("bert"))
    with torch.no_grad():
        elastic.model.bert.embeddings.LayerNorm.bias[0] = torch.nan
    with pytest.raises(NonFiniteError, match="stage 'deebert'"):
        deebert.train(elastic, TinyBatches(), training=TRAINING, lr=LR, budget_flops=1e10)


def test_micro_batches_are_one_step():
    """Two halves with the sizes of the whole give the gradients of the whole."""
    whole = tiny_batch(1, batch=6)

    class Halves(TinyBatches):
        def micro_batches(self, step):
            from dynabert.batches import Sizes

            sizes = Sizes(6, int(whole.inputs["attention_mask"].sum()), whole.inputs["input_ids"].numel())
            for part in (slice(0, 3), slice(3, 6)):
                inputs = {name: tensor[part] for name, tensor in whole.inputs.items()}
                yield type(whole)(inputs, whole.labels[part], whole.ids[part], sizes)

    class Whole(TinyBatches):
        def at(self, step):
            return whole

    results = []
    for source in (Halves(4), Whole(4)):
        elastic = double("bert")
        ramps = made(elastic, Subnet(), deebert.PoolerRamp, seed=1).double()
        train_ramps(elastic, TEACHER_FOR_FIVE_STEPS, ramps, source, loss=deebert.labels_loss, training=TRAINING)
        results.append(torch.cat([parameter.flatten() for parameter in ramps.parameters()]))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)
