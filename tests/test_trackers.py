"""What TensorBoard and Weights & Biases are told of a run, and that a run that goes on goes on there too."""

import json
import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
from accelerate import PartialState
from small_job import small_plan, write_job

from dynabert import trackers
from dynabert.errors import SettingError
from dynabert.failures import Saving
from dynabert.hooks import HookList, Hooks, StepReport
from dynabert.recipes import RECIPES, TEACHER
from dynabert.run import train
from dynabert.trackers import Tracking, tracking
from dynabert.workload import PlannedStage

WIDTH, DEPTH = RECIPES["two-stage"].stages
STAGES = (PlannedStage("width", 10, 1.0), PlannedStage("depth", 10, 1.0))
SUBNETS = ("w1-d1", "w1-d0.5", "w0.5-d1", "w0.5-d0.5")
# 240 rows, of which a part is held out to select on: 14 batches of 16, an epoch of them in each stage.
OFFSETS = {"teacher": 0, "width": 14, "depth": 28}
LOGGED_EVERY = 2


class Interrupt(Hooks):
    """Stops a stage as a crash would."""

    def stepped(self, report: StepReport) -> None:
        if (report.stage, report.step) == ("depth", 9):
            raise KeyboardInterrupt


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: tag to steps and values."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run that was never interrupted, and one that was, in the middle of its last stage, and went on."""
    encoder, source = write_job(tmp_path_factory.mktemp("job"))
    whole, resumed = encoder.parent / "whole", encoder.parent / "resumed"
    plan = replace(small_plan(log_every=LOGGED_EVERY, evaluate_every=4), teacher=replace(TEACHER, epochs=1, lr=2e-3))
    with tracking(["tensorboard"], whole) as hooks:
        train(encoder, source, whole, plan=plan, latency=None, hooks=hooks)
    plan = replace(plan, training=replace(plan.training, saving=Saving(minutes=0)))
    with pytest.raises(KeyboardInterrupt), tracking(["tensorboard"], resumed) as hooks:
        train(encoder, source, resumed, plan=plan, latency=None, hooks=HookList(hooks, Interrupt()))
    # Two checkpoints are kept; without the newer one the run has to repeat a step that was written already.
    older, newer = sorted((resumed / "checkpoints").glob("depth-*"))
    assert (older.name, newer.name) == ("depth-00000008", "depth-00000009")
    for file in newer.iterdir():
        file.write_bytes(b"")
    with tracking(["tensorboard"], resumed) as hooks:
        train(encoder, source, resumed, plan=plan, latency=None, hooks=hooks)
    return whole, resumed


def test_tensorboard_has_every_loss_term_of_every_subnet_at_every_logged_step(runs: tuple[Path, Path]) -> None:
    written = scalars(runs[0] / "tensorboard")
    lines = [json.loads(line) for line in (runs[0] / "metrics.jsonl").read_text().splitlines()]
    losses: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        for subnet, terms in line.get("losses", {}).items():
            for term, value in terms.items():
                tag = f"{line['stage']}/loss/{subnet}/{term}"
                losses.setdefault(tag, []).append((OFFSETS[line["stage"]] + line["step"], pytest.approx(value)))
    terms = ("logits", "hidden", "embeddings")
    expected = {f"depth/loss/{subnet}/{term}" for subnet in SUBNETS for term in terms}
    expected |= {f"width/loss/{subnet}/{term}" for subnet in ("w1-d1", "w0.5-d1") for term in terms}
    assert set(losses) == expected | {"teacher/loss/w1-d1/labels"}
    assert {tag: values for tag, values in written.items() if "/loss/" in tag} == losses
    assert [step for step, _ in written["depth/loss/w0.5-d0.5/hidden"]] == list(range(28, 42, LOGGED_EVERY))


def test_tensorboard_has_rates_norms_speed_and_scores(runs: tuple[Path, Path]) -> None:
    written = scalars(runs[0] / "tensorboard")
    lines = [json.loads(line) for line in (runs[0] / "metrics.jsonl").read_text().splitlines()]
    for stage in ("teacher", "width", "depth"):
        reports = [line for line in lines if line["stage"] == stage and "losses" in line]
        for tag, field in (("lr", "lr"), ("gradient_norm", "gradient_norm"), ("skipped_steps", "n_skipped")):
            values = [(OFFSETS[stage] + line["step"], pytest.approx(line[field])) for line in reports]
            assert written[f"{stage}/{tag}"] == values
        assert all(value > 0 for _, value in written[f"{stage}/tokens_per_second"])
        scores = [(line["step"], line["select_score"]) for line in lines if line["stage"] == stage and "best" in line]
        assert written[f"{stage}/select_score"] == [
            (OFFSETS[stage] + done - 1, pytest.approx(score)) for done, score in scores
        ]


def test_a_resumed_run_goes_on_in_tensorboard_as_if_it_had_not_been_interrupted(runs: tuple[Path, Path]) -> None:
    whole, resumed = (scalars(run / "tensorboard") for run in runs)
    assert len(list((runs[1] / "tensorboard").iterdir())) == 2, "two processes wrote"
    speeds = {tag for tag in whole if tag.endswith("tokens_per_second")}
    assert whole.keys() == resumed.keys()
    for tag in whole:
        steps = [step for step, _ in resumed[tag]]
        assert steps == [step for step, _ in whole[tag]], tag
        if tag not in speeds:
            assert resumed[tag] == whole[tag], tag


# What is counted.


class Recorder:
    """A tracker that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[tuple[int | None, dict[str, float]]] = []
        self.calls: list[str] = []

    def start(self) -> None:
        self.calls.append("start")

    def log(self, values: dict[str, float], step: int | None = None) -> None:
        self.lines.append((step, values))

    def finish(self) -> None:
        self.calls.append("finish")


def report(stage: str, step: int, *, logged: bool = True, n_tokens: int = 100) -> StepReport:
    return StepReport(stage, step, 10, 1e-5, 0.5, n_tokens, 0, {"w1-d1": {"logits": 0.25}} if logged else {})


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()
    monkeypatch.setitem(trackers.TRACKERS, "tensorboard", lambda out, first_step: made)
    return made


def test_tokens_per_second_leave_evaluations_out(recorder: Recorder, tmp_path: Path) -> None:
    now = [0.0]
    hooks = Tracking(["tensorboard"], tmp_path, clock=lambda: now[0])
    hooks.planned(STAGES)
    hooks.started(DEPTH, 10, 0)
    for step in range(4):
        now[0] += 2
        hooks.stepped(report("depth", step, logged=step % 2 == 1))
        if step == 1:
            now[0] += 1000
            hooks.evaluated(DEPTH, 2, 0.75, True)
    assert [(step, values.get("depth/tokens_per_second")) for step, values in recorder.lines] == [
        (11, 50.0),
        (11, None),
        (13, 50.0),
    ]


def test_stages_that_nobody_planned_follow_one_another(recorder: Recorder, tmp_path: Path) -> None:
    with tracking(["tensorboard", "tensorboard"], tmp_path) as hooks:
        for stage in (WIDTH, DEPTH):
            hooks.started(stage, 10, 0)
            hooks.stepped(report(stage.name, 3))
    assert [step for step, _ in recorder.lines] == [3, 13]
    assert recorder.calls == ["start", "finish"]


def test_trackers_close_when_training_fails(recorder: Recorder, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), tracking(["tensorboard"], tmp_path) as hooks:
        hooks.started(WIDTH, 10, 0)
        raise KeyboardInterrupt
    assert recorder.calls == ["start", "finish"]


# Weights & Biases, by a stand-in.


class Wandb(ModuleType):
    """What accelerate uses of wandb: init() gives a run that logs and finishes."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None, origin="stand-in")
        self.opened: list[dict[str, object]] = []
        self.lines: list[tuple[int | None, dict[str, float]]] = []
        self.finished = 0

    def init(self, **settings: object) -> "Wandb":
        self.opened.append(settings)
        return self

    def log(self, values: dict[str, float], step: int | None = None) -> None:
        self.lines.append((step, values))

    def finish(self) -> None:
        self.finished += 1


def test_wandb_goes_on_with_the_same_run_and_gets_scalars_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    PartialState._reset_state()  # as in a process that has not used accelerate yet
    for step in (0, 4):  # begun, and gone on with by another process
        with tracking(["wandb"], tmp_path) as hooks:
            hooks.planned(STAGES)
            hooks.started(DEPTH, 10, step)
            hooks.stepped(report("depth", step))
            hooks.evaluated(DEPTH, step + 1, 0.75, True)
    first, second = wandb.opened
    assert first == second and first["resume"] == "allow" and first["id"]
    assert (first["project"], first["name"]) == ("dynabert", tmp_path.name)
    assert [step for step, _ in wandb.lines] == [10, 10, 14, 14] and wandb.finished == 2
    assert all(isinstance(value, (int, float)) for _, values in wandb.lines for value in values.values())
    with tracking(["wandb"], tmp_path / "other") as hooks:
        (tmp_path / "other").mkdir()
        hooks.started(WIDTH, 10, 0)
    assert wandb.opened[-1]["id"] != first["id"], "another folder is another run"


# What is missing.


def test_a_missing_package_names_the_extra_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wandb").mkdir()  # as an earlier run of wandb leaves it
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    if (spec := find_spec("wandb")) is not None and spec.origin is not None:
        pytest.skip("wandb is installed here")
    with pytest.raises(SettingError) as caught, tracking(["tensorboard", "wandb"], tmp_path / "run"):
        pass
    assert str(caught.value) == "tracker 'wandb' needs wandb: pip install 'dynabert[wandb]'"
    with pytest.raises(SettingError, match=r"unknown tracker 'tensorbord' \(did you mean 'tensorboard'\?\)"):
        Tracking(["tensorbord"], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_no_tracker_writes_nothing(tmp_path: Path) -> None:
    with tracking([], tmp_path) as hooks:
        hooks.started(WIDTH, 10, 0)
        hooks.stepped(report("width", 0))
    assert list(tmp_path.iterdir()) == []
