"""The training loop: choice of the best weights, bad steps, exact resuming, schedules and hooks."""

import signal
import weakref
from dataclasses import replace

import pytest
import torch
from helpers import TinyBatches, tiny_model

from dynabert.distill import StageRun, Training, distill, train_stage
from dynabert.elastic import ElasticModel
from dynabert.errors import ModelFileError, NonFiniteError, SettingError, Stopped
from dynabert.failures import MAX_BAD_STEPS, Saving, stop_signals
from dynabert.hooks import HookList, Hooks, Progress, Snapshot
from dynabert.losses import PUBLISHED, LossWeights
from dynabert.recipes import FINETUNE, RECIPES, Schedule, Stage
from dynabert.subnet import Subnet, SubnetGrid

GRID = SubnetGrid((1.0, 0.5), (1.0, 0.5))
LR = 1e-3
LABELS = replace(FINETUNE, epochs=1, lr=LR)
WIDTH, DEPTH = (replace(stage, epochs=1, lr=LR) for stage in RECIPES["two-stage"].stages)
EVERY_STEP = Training(precision="fp32", log_every=1, evaluate_every=1, saving=Saving(0))


def make_elastic(seed=0, *, dropout=0.1, n_labels=3, grid=GRID, dtype=torch.float32):
    model = tiny_model(
        "bert", seed=seed, dropout=dropout, n_labels=n_labels, n_layers=2, hidden=32, n_neurons=32, dtype=dtype
    )
    return ElasticModel(model, grid)


def weights_of(elastic):
    return {name: parameter.detach().clone() for name, parameter in elastic.model.named_parameters()}


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in got.items())


def differ(got, expected):
    return any(not torch.equal(tensor, expected[name]) for name, tensor in got.items())


class Recorder(Hooks):
    """Writes down every call, with the weights after each step and a copy of each checkpoint."""

    def __init__(self, elastic):
        self.elastic = elastic
        self.calls, self.reports, self.weights, self.scores, self.snapshots = [], [], [], [], {}

    def planned(self, stages):
        self.calls += [("planned", stage.name, stage.n_steps) for stage in stages]

    def started(self, stage, n_steps, step):
        self.calls.append(("started", stage.name, n_steps, step))

    def stepped(self, report):
        self.calls.append(("stepped", report.stage, report.step))
        self.reports.append(report)
        self.weights.append(weights_of(self.elastic))

    def evaluated(self, stage, step, score, best):
        self.calls.append(("evaluated", stage.name, step))
        self.scores.append((step, score, best))

    def checkpoint(self, stage, snapshot):
        taken = snapshot()
        self.calls.append(("checkpoint", stage.name, taken.progress.step))
        tensors = {name: tensor.clone() for name, tensor in taken.tensors.items()}
        self.snapshots[taken.progress.step] = Snapshot(tensors, taken.progress)


def run(elastic, stage=LABELS, *, batches=None, teacher=None, training=EVERY_STEP, **options):
    """One stage; what was recorded, and the progress."""
    recorder = Recorder(elastic)
    progress = train_stage(
        elastic, stage, batches or TinyBatches(), teacher=teacher, training=training, hooks=recorder, **options
    )
    return recorder, progress


def scripted(scores):
    """An evaluation with given results."""
    left = iter(scores)
    return lambda elastic, stage: next(left)


# The choice of the best weights.


def test_the_best_weights_are_put_back_and_of_equal_ones_the_later():
    elastic = make_elastic()
    recorder, progress = run(elastic, evaluate=scripted([0.1, 0.9, 0.9, 0.5]))
    assert recorder.scores == [(1, 0.1, True), (2, 0.9, True), (3, 0.9, True), (4, 0.5, False)]
    assert (progress.best_step, progress.best_score, progress.step) == (3, 0.9, 4)
    assert_same(weights_of(elastic), recorder.weights[2])
    assert differ(weights_of(elastic), recorder.weights[3])


def test_without_evaluation_the_last_weights_stay():
    elastic = make_elastic()
    recorder, progress = run(elastic)
    assert_same(weights_of(elastic), recorder.weights[-1])
    assert (progress.best_step, progress.best_score) == (-1, float("-inf"))


def test_evaluations_that_score_nothing_choose_nothing():
    elastic = make_elastic()
    recorder, progress = run(elastic, evaluate=lambda elastic, stage: float("nan"))
    assert [best for _, _, best in recorder.scores] == [False] * 4 and progress.best_step == -1
    assert_same(weights_of(elastic), recorder.weights[-1])


def test_the_best_weights_reach_the_views():
    elastic = make_elastic(dropout=0.0)
    batch = TinyBatches().at(0)
    view, seen = elastic.at(Subnet(0.5)), []

    def evaluate(model, stage):
        assert model is elastic and stage is LABELS
        with torch.no_grad():
            seen.append(view(**batch.inputs).logits)
        return -len(seen)

    run(elastic, evaluate=evaluate)
    with torch.no_grad():
        assert torch.equal(view(**batch.inputs).logits, seen[0])
    assert not torch.equal(seen[0], seen[-1])


def test_evaluations_come_four_times_a_stage_and_at_the_end():
    for n_steps, expected in ((8, [2, 4, 6, 8]), (10, [3, 6, 9, 10]), (3, [1, 2, 3])):
        recorder, _ = run(
            make_elastic(grid=SubnetGrid((1.0,), (1.0,))),
            batches=TinyBatches(n_steps),
            training=replace(EVERY_STEP, evaluate_every=None),
            evaluate=lambda elastic, stage: 1.0,
        )
        assert [step for step, _, _ in recorder.scores] == expected


# NaN and infinity.


class Poisoned(TinyBatches):
    """Regression batches of which some have a label that is not a number."""

    def __init__(self, bad_steps, n_steps=6, value=float("nan")):
        super().__init__(n_steps, n_labels=1)
        self.list = [
            replace(batch, labels=torch.full_like(batch.labels, value)) if step in bad_steps else batch
            for step, batch in enumerate(self.list)
        ]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_step_is_left_out(value):
    elastic = make_elastic(n_labels=1)
    recorder, progress = run(elastic, batches=Poisoned({1, 3}, value=value))
    finite = [report.gradient_norm - report.gradient_norm == 0 for report in recorder.reports]
    assert finite == [True, False, True, False, True, True]
    for step in (1, 3):
        assert_same(recorder.weights[step], recorder.weights[step - 1])
    for step in (2, 4, 5):
        assert differ(recorder.weights[step], recorder.weights[step - 1])
    assert all(tensor.isfinite().all() for tensor in weights_of(elastic).values())
    assert (progress.step, progress.bad_steps, progress.skipped) == (6, 0, 2)
    assert [report.n_skipped for report in recorder.reports] == [0, 1, 1, 2, 2, 2]
    assert [report.lr for report in recorder.reports] == pytest.approx([LR * (6 - step) / 6 for step in range(6)])


def test_a_bad_step_leaves_no_trace_in_the_following_ones():
    """Left out means as if it had not been: the optimizer's averages have not seen it either."""
    taken, skipped = make_elastic(n_labels=1), make_elastic(n_labels=1)
    recorder, _ = run(skipped, batches=Poisoned({0}, 2))
    expected, _ = run(taken, batches=Poisoned(set(), 2), resume=Snapshot(recorder_start(taken), Progress(step=1)))
    assert_same(recorder.weights[1], expected.weights[0])


def recorder_start(elastic):
    """Tensors of a checkpoint before any step."""
    return {f"weights/{name}": tensor for name, tensor in weights_of(elastic).items()}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_too_many_bad_steps_in_a_row_end_the_stage(precision):
    elastic = make_elastic(n_labels=1)
    batches = Poisoned(set(range(1, 9)), 10)
    recorder = Recorder(elastic)
    with pytest.raises(NonFiniteError) as caught:
        train_stage(elastic, LABELS, batches, training=replace(EVERY_STEP, precision=precision), hooks=recorder)
    message = str(caught.value)
    assert len(recorder.reports) == MAX_BAD_STEPS == 5  # one good step and four bad ones were reported
    assert all(str(int(row)) in message for row in batches.at(MAX_BAD_STEPS).ids)
    assert "'finetune'" in message and f"at step {MAX_BAD_STEPS} " in message and "\n" not in message
    assert_same(weights_of(elastic), recorder.weights[0])
    assert all(tensor.isfinite().all() for tensor in weights_of(elastic).values())


def test_bad_steps_count_only_in_a_row():
    recorder, progress = run(make_elastic(n_labels=1), batches=Poisoned({0, 1, 2, 3, 5, 6, 7, 8}, 10))
    assert progress.step == 10 and len(recorder.reports) == 10


def test_bad_steps_are_counted_on_after_a_resume():
    recorder, _ = run(make_elastic(n_labels=1), batches=Poisoned({1, 2, 3, 4}, 10))
    snapshot = recorder.snapshots[4]
    assert snapshot.progress.bad_steps == 3
    with pytest.raises(NonFiniteError, match="at step 5 of stage"):
        run(make_elastic(n_labels=1), batches=Poisoned(set(range(1, 10)), 10), resume=snapshot)


def test_steps_left_out_before_a_resume_count_too():
    recorder, _ = run(make_elastic(n_labels=1), batches=Poisoned({1, 2}, 6))
    _, progress = run(make_elastic(n_labels=1), batches=Poisoned({4}, 6), resume=recorder.snapshots[3])
    assert progress.skipped == 3


# Resuming.

SANDWICH = Stage("mixed", "grid", LossWeights(1, 1, 1, 0.5), schedule=Schedule("sandwich", 1), epochs=1.5, lr=LR)


def score_by_weights(elastic, stage):
    """Some number that depends on all weights, best in the middle of the stage."""
    total = sum(float(parameter.detach().double().sum()) for parameter in elastic.model.parameters())
    return (1e6 * total) % 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("evaluate", [None, score_by_weights], ids=["last", "best"])
@pytest.mark.parametrize("stage", [SANDWICH, DEPTH, LABELS], ids=lambda stage: stage.name)
def test_resumed_equals_uninterrupted_bit_for_bit(stage, evaluate, precision):
    training = replace(EVERY_STEP, precision=precision, weight_decay=0.01, warmup=0.4)
    teacher = make_elastic(seed=9)
    options = {"teacher": teacher, "training": training, "evaluate": evaluate}
    whole = make_elastic()
    recorder, progress = run(whole, stage, **options)
    n_steps = recorder.calls[0][2]
    assert sorted(recorder.snapshots) == list(range(1, n_steps))
    for step in (1, n_steps - 1):
        torch.manual_seed(step)  # whatever the generator's state is
        resumed = make_elastic(seed=5)  # all that counts comes from the checkpoint
        again, again_progress = run(resumed, stage, resume=recorder.snapshots[step], **options)
        assert again.calls[0] == ("started", stage.name, n_steps, step)
        assert again_progress == progress
        assert again.reports == recorder.reports[step:]
        assert again.scores == recorder.scores[step if evaluate else 0 :]
        assert_same(weights_of(resumed), weights_of(whole))


@pytest.mark.parametrize("place", ["forward", "evaluation", "stepped"])
def test_a_stop_makes_a_checkpoint_that_goes_on_to_the_same_end(place, monkeypatch):
    """The signal comes in the middle of a step, of an evaluation, or between the two."""
    whole = make_elastic()
    recorder, progress = run(whole, evaluate=score_by_weights, training=replace(EVERY_STEP, saving=Saving(1e9)))
    stopped = make_elastic()
    watch = Recorder(stopped)
    real, forwards = StageRun._run, []

    def forward(self, view, batch):
        forwards.append(view)
        if place == "forward" and len(forwards) == 10:  # in the third step, after one of its four Subnets
            signal.raise_signal(signal.SIGTERM)
        return real(self, view, batch)

    def evaluate(elastic, stage):
        if place == "evaluation" and len(watch.scores) == 1:
            signal.raise_signal(signal.SIGTERM)
        return score_by_weights(elastic, stage)

    if place == "stepped":
        watch.stepped = lambda report: report.step == 1 and signal.raise_signal(signal.SIGTERM)
    monkeypatch.setattr(StageRun, "_run", forward)
    training = replace(EVERY_STEP, saving=Saving(1e9))
    with pytest.raises(Stopped), stop_signals():
        train_stage(stopped, LABELS, TinyBatches(), training=training, evaluate=evaluate, hooks=watch)
    monkeypatch.undo()
    assert list(watch.snapshots) == [2], "the checkpoint is of the last step that was taken"
    evaluated = watch.snapshots[2].progress.evaluated_step
    assert evaluated == (2 if place == "forward" else 1)
    resumed = make_elastic(seed=5)
    again, again_progress = run(resumed, evaluate=score_by_weights, resume=watch.snapshots[2], training=training)
    assert again_progress == progress and again.scores == recorder.scores[evaluated:]
    assert_same(weights_of(resumed), weights_of(whole))


def test_a_checkpoint_of_another_network_is_refused():
    recorder, _ = run(make_elastic())
    whole = recorder.snapshots[2]
    other = {name: t[:1] if name == "weights/classifier.weight" else t for name, t in whole.tensors.items()}
    lacking = {name: t for name, t in whole.tensors.items() if name != "weights/classifier.weight"}
    for tensors, message in ((other, "is of another network"), (lacking, "lacks classifier.weight")):
        elastic = make_elastic(seed=5)
        before = weights_of(elastic)
        with pytest.raises(ModelFileError, match=message):
            run(elastic, resume=Snapshot(tensors, whole.progress))
        assert_same(weights_of(elastic), before)


def test_a_checkpoint_after_every_so_many_steps():
    recorder, _ = run(make_elastic(), replace(LABELS, epochs=2), training=replace(EVERY_STEP, saving=Saving(1e9, 3)))
    assert sorted(recorder.snapshots) == [3, 6]


def test_a_loss_that_is_not_finite_counts_though_no_gradient_shows_it(monkeypatch):
    real = StageRun.losses

    def losses(self, step, batch, part):
        for subnet, terms in real(self, step, batch, part):
            yield subnet, {name: term + (float("nan") if step == 1 else 0) for name, term in terms.items()}

    monkeypatch.setattr(StageRun, "losses", losses)
    recorder, progress = run(make_elastic())
    assert progress.skipped == 1 and recorder.reports[1].skipped == tuple(TinyBatches().at(1).ids.tolist())
    assert recorder.reports[1].gradient_norm > 0
    assert_same(recorder.weights[1], recorder.weights[0])


def test_a_batch_of_padding_alone_asks_for_nothing():
    batches = TinyBatches()
    batches.list[0].inputs["attention_mask"].zero_()
    for stage in (WIDTH, LABELS):
        recorder, progress = run(make_elastic(), stage, batches=batches, teacher=make_elastic(seed=9))
        losses = [value for terms in recorder.reports[0].losses.values() for value in terms.values()]
        assert losses == [0.0] * len(losses) and recorder.reports[0].gradient_norm == 0 and progress.skipped == 0


def test_a_snapshot_taken_at_the_end_gives_the_same_network():
    whole = make_elastic()
    recorder, _ = run(whole, evaluate=score_by_weights)
    last = recorder.snapshots[3]
    resumed = make_elastic(seed=5)
    again, _ = run(resumed, evaluate=score_by_weights, resume=last)
    finished = make_elastic(seed=6)
    done = Snapshot(last.tensors, replace(last.progress, step=4))
    progress = train_stage(finished, LABELS, TinyBatches(), training=EVERY_STEP, resume=done)
    assert progress.step == 4 and len(again.reports) == 1  # nothing is left to do but to put the best back
    best = {name.removeprefix("best/"): t for name, t in last.tensors.items() if name.startswith("best/")}
    assert_same(weights_of(finished), best)


def test_training_depends_on_the_seed_alone():
    results = []
    for global_seed, seed in ((1, 42), (2, 42), (1, 43)):
        elastic = make_elastic()
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        run(elastic, training=replace(EVERY_STEP, seed=seed))
        assert torch.equal(torch.get_rng_state(), before)  # nobody else's random numbers are used up
        results.append(weights_of(elastic))
    assert_same(results[0], results[1])
    assert differ(results[0], results[2])


# Schedules.


@pytest.mark.parametrize("warmup", [0.0, 0.3, 0.99])
def test_the_learning_rate_rises_and_falls_linearly(warmup):
    elastic = make_elastic(grid=SubnetGrid((1.0,), (1.0,)))
    recorder, _ = run(elastic, batches=TinyBatches(10), training=replace(EVERY_STEP, warmup=warmup))
    warm = {0.0: 0, 0.3: 3, 0.99: 10}[warmup]
    expected = [LR * (s + 1) / warm if s < warm else LR * (10 - s) / (10 - warm) for s in range(10)]
    assert [report.lr for report in recorder.reports] == pytest.approx(expected)


def test_the_learning_rate_is_the_one_that_is_used():
    """AdamW's first step moves each weight by the learning rate, whatever the gradient."""
    elastic = make_elastic(dropout=0.0)
    before = weights_of(elastic)
    recorder, _ = run(elastic, training=replace(EVERY_STEP, warmup=0.5))
    moved = (recorder.weights[0]["classifier.weight"] - before["classifier.weight"]).abs()
    assert moved.max() == pytest.approx(LR / 2, rel=1e-3)


@pytest.mark.parametrize(("epochs", "n_steps"), [(1, 4), (0.5, 2), (2.25, 9), (0.01, 1)])
def test_epochs_become_steps(epochs, n_steps):
    recorder, progress = run(make_elastic(grid=SubnetGrid((1.0,), (1.0,))), replace(LABELS, epochs=epochs))
    assert progress.step == n_steps == len(recorder.reports)
    assert recorder.calls[0] == ("started", "finetune", n_steps, 0)


def test_clipping_bounds_the_gradient_and_reports_it_unclipped():
    stage = replace(LABELS, epochs=0.25)  # one step
    norms, grads = [], []
    for clip in (1e6, 0.01):
        elastic = make_elastic()
        seen = {}

        class Watch(Hooks):
            def stepped(self, report, seen=seen, model=elastic.model):
                seen["norm"] = report.gradient_norm
                seen["grad"] = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

        train_stage(elastic, stage, TinyBatches(), training=replace(EVERY_STEP, clip=clip), hooks=Watch())
        norms.append(seen["norm"])
        grads.append(seen["grad"].norm().item())
    assert norms[0] == norms[1] == pytest.approx(grads[0], rel=1e-5)
    assert norms[0] > 0.01 and grads[1] == pytest.approx(0.01, rel=1e-3)


# Hooks and reports.


def test_hooks_are_called_in_order():
    recorder, _ = run(make_elastic(), evaluate=lambda elastic, stage: 0.0)
    expected = [("started", "finetune", 4, 0)]
    for step in range(4):
        expected += [("stepped", "finetune", step), ("evaluated", "finetune", step + 1)]
        if step < 3:  # a finished stage is saved by its caller
            expected.append(("checkpoint", "finetune", step + 1))
    assert recorder.calls == expected


def test_no_checkpoint_before_its_time():
    recorder, _ = run(make_elastic(), training=replace(EVERY_STEP, saving=Saving(5)))
    assert not recorder.snapshots


def test_losses_are_reported_now_and_then():
    recorder, _ = run(make_elastic(), replace(LABELS, epochs=1.5), training=replace(EVERY_STEP, log_every=3))
    assert [bool(report.losses) for report in recorder.reports] == [True, False, False, True, False, False]
    assert list(recorder.reports[0].losses) == ["w1-d1", "w1-d0.5", "w0.5-d1", "w0.5-d0.5"]
    assert all(list(terms) == ["labels"] for terms in recorder.reports[0].losses.values())


# Teachers, frozen weights and what is left behind.


def test_the_teacher_is_not_changed():
    elastic, teacher = make_elastic(), make_elastic(seed=1)
    before = weights_of(teacher)
    run(elastic, DEPTH, teacher=teacher)
    assert_same(weights_of(teacher), before)
    assert all(parameter.grad is None for parameter in teacher.model.parameters())


def test_a_stage_leaves_no_gradients_and_no_modes():
    elastic = make_elastic()
    view = elastic.at(Subnet(0.5))
    run(elastic, WIDTH, teacher=make_elastic(seed=1))
    assert all(parameter.grad is None for parameter in elastic.model.parameters())
    assert not elastic.model.training and not view.training


def test_frozen_weights_stay():
    elastic = make_elastic()
    before = weights_of(elastic)
    frozen = [name for name in before if "embeddings" in name or "layer.0.attention.self.query" in name]
    for name in frozen:
        elastic.model.get_parameter(name).requires_grad_(False)
    run(elastic, evaluate=scripted([1.0, 2.0, 3.0, 4.0]))
    after = weights_of(elastic)
    assert all(torch.equal(before[name], after[name]) == (name in frozen) for name in before)


def test_training_lowers_the_loss():
    elastic = make_elastic(dropout=0.0)
    recorder, _ = run(elastic, replace(LABELS, epochs=10, lr=5e-3))
    first, last = recorder.reports[0].losses, recorder.reports[-4].losses  # the same batch
    assert all(last[name]["labels"] < 0.5 * first[name]["labels"] for name in first)


def test_what_a_stage_needs_and_does_not_get():
    with pytest.raises(SettingError, match="stage 'width' needs a teacher"):
        run(make_elastic(), WIDTH)
    batches = TinyBatches()
    batches.list = [replace(batch, labels=None) for batch in batches.list]
    with pytest.raises(SettingError, match="the batches have none"):
        run(make_elastic(), batches=batches)


@pytest.mark.parametrize(
    "bad",
    [
        {"warmup": 1.0},
        {"warmup": -0.1},
        {"clip": 0},
        {"clip": float("nan")},
        {"weight_decay": -1},
        {"log_every": 0},
        {"evaluate_every": 0},
        {"precision": "fp16"},
    ],
    ids=str,
)
def test_settings_are_checked(bad):
    with pytest.raises(SettingError):
        Training(**bad)


# Whole recipes.


def shortened(name):
    recipe = RECIPES[name]
    return replace(recipe, stages=tuple(replace(stage, epochs=0.5, lr=LR) for stage in recipe.stages))


def test_several_hooks_hear_the_same():
    elastic = make_elastic()
    one, other = Recorder(elastic), Recorder(elastic)
    training = replace(EVERY_STEP, evaluate_every=2)
    distill(
        elastic,
        TinyBatches(),
        recipe=shortened("default"),
        training=training,
        evaluate=lambda *_: 0.5,
        hooks=HookList(one, other),
    )
    assert {call[0] for call in one.calls} == {"planned", "started", "stepped", "evaluated", "checkpoint"}
    assert one.calls == other.calls
    assert one.calls[0] == ("planned", "sandwich", 2)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_its_stages_one_after_the_other(name):
    recipe = shortened(name)
    at_once, by_hand = make_elastic(), make_elastic()
    recorder = Recorder(at_once)
    distill(at_once, TinyBatches(), recipe=recipe, training=EVERY_STEP, hooks=recorder)
    original = by_hand.copy()
    for stage in recipe.stages:
        teacher = original if stage.teacher == "original" else by_hand.copy()
        run(by_hand, stage, teacher=teacher, reduction=recipe.reduction)
    assert_same(weights_of(at_once), weights_of(by_hand))
    started = [call[1] for call in recorder.calls if call[0] == "started"]
    assert started == [stage.name for stage in recipe.stages]


def test_the_teacher_of_a_recipe_may_be_given():
    results = []
    for teacher in (None, make_elastic(), make_elastic(seed=1)):
        elastic = make_elastic()
        distill(elastic, TinyBatches(), recipe=shortened("two-stage"), teacher=teacher, training=EVERY_STEP)
        results.append(weights_of(elastic))
    assert_same(results[0], results[1])  # by default, the network as it was
    assert differ(results[0], results[2])


def test_the_reduction_of_a_recipe_is_used():
    recipe = shortened("two-stage")
    results = []
    for reduction in (recipe.reduction, PUBLISHED):
        elastic = make_elastic()
        distill(elastic, TinyBatches(), recipe=replace(recipe, reduction=reduction), training=EVERY_STEP)
        results.append(weights_of(elastic))
    assert differ(*results)


def test_an_unknown_recipe():
    with pytest.raises(SettingError, match="unknown recipe 'papr'"):
        distill(make_elastic(), TinyBatches(), recipe="papr")


def test_a_resumed_stage_lets_go_of_its_checkpoint():
    """Tensors mapped from a file keep the file's room on the disk, and on other ranks they are memory."""
    recorder, _ = run(make_elastic())
    step = min(recorder.snapshots)
    tensors = {name: tensor.clone() for name, tensor in recorder.snapshots[step].tensors.items()}
    watched = weakref.ref(next(iter(tensors.values())))
    loaded = [Snapshot(tensors, recorder.snapshots[step].progress)]
    del tensors
    alive = []

    class Watch(Hooks):
        def stepped(self, report):
            alive.append(watched() is not None)

    train_stage(make_elastic(), LABELS, TinyBatches(), training=EVERY_STEP, resume=loaded.pop, hooks=Watch())
    assert alive and not any(alive)
