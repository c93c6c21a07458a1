import json
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_job import small_plan, write_job

from dynabert import job as job_module
from dynabert import run as run_module
from dynabert.batches import Batch, Encoded
from dynabert.data import Rows
from dynabert.distill import StageRun
from dynabert.elastic import ElasticModel
from dynabert.errors import DataError, ModelFileError, SettingError, Stopped
from dynabert.failures import Saving, stop_signals
from dynabert.files import sha256_of
from dynabert.hooks import Hooks, StepReport
from dynabert.job import prepare
from dynabert.loading import load
from dynabert.plan import Batching, Plan, Source
from dynabert.recipes import RECIPES, Stage
from dynabert.results import extract_run, load_result, load_sweep, measure_run, rows_of
from dynabert.run import train, train_teacher
from dynabert.run_folder import locked, read_metrics
from dynabert.saved import Saved, moved
from dynabert.studies.study import Study
from dynabert.subnet import Subnet, SubnetGrid
from dynabert.sweep import LatencySettings


class Interrupt(Hooks):
    """Stops a stage as a crash would, after some of its steps."""

    def __init__(self, stage: str, step: int) -> None:
        self.stage, self.step = stage, step

    def stepped(self, report: StepReport) -> None:
        if (report.stage, report.step) == (self.stage, self.step):
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Source]:
    return write_job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def finished(job: tuple[Path, Source]) -> Path:
    encoder, source = job
    train(encoder, source, encoder.parent / "run", plan=small_plan(), latency=None)
    return encoder.parent / "run"


def test_a_run_leaves_teacher_result_sweep_and_metrics(finished: Path) -> None:
    sweep = load_sweep(finished)
    assert [row.subnet for row in sweep.rows] == ["w1-d1", "w1-d0.5", "w0.5-d1", "w0.5-d0.5"]
    assert [row.n_layers for row in sweep.rows] == [2, 1, 2, 1]
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    depth = [line for line in lines if line.get("stage") == "depth" and "losses" in line]
    assert set(depth[0]["losses"]) == {row.subnet for row in sweep.rows}
    assert set(depth[0]["losses"]["w0.5-d0.5"]) == {"logits", "hidden", "embeddings"}
    assert not list((finished / "checkpoints").glob("*")) if (finished / "checkpoints").exists() else True
    assert load(finished / "teacher").config.id2label == {0: "bad", 1: "good"}


def test_the_trained_network_has_learned_the_task(finished: Path) -> None:
    sweep = load_sweep(finished)
    assert sweep.context.reference > 0.9
    assert sum(row.metric for row in sweep.rows) / len(sweep.rows) > 0.7  # chance is 0.5


def test_rows_that_have_moved_are_read_where_they_are_now(finished: Path, tmp_path: Path) -> None:
    run, rows = shutil.copytree(finished, tmp_path / "run"), tmp_path / "rows"
    source = Saved.of(run).source
    assert source.train and source.validation
    rows.mkdir()
    for path in (source.train, source.validation):
        shutil.copy(path, rows)
    saved = json.loads((run / "run.json").read_text())
    gone = {name: f"/gone/{Path(saved['source'][name]).name}" for name in ("train", "validation")}
    (run / "run.json").write_text(json.dumps({**saved, "source": {**saved["source"], **gone}}))
    with pytest.raises(DataError, match="where they are now: dynabert moved RUN DIR"):
        measure_run(run, latency=None)
    with pytest.raises(DataError, match="no such file"):
        moved(run, tmp_path)
    moved(run, rows)
    kept, again = Study(run)._digest("settings"), shutil.copytree(rows, tmp_path / "again")
    moved(run, again)
    assert Study(run)._digest("settings") == kept, "what studies have trained is known again"
    moved(run, rows)
    assert [row.quality for row in measure_run(run, latency=None).rows] == [
        row.quality for row in load_sweep(finished).rows
    ]
    (rows / source.validation.name).write_text((rows / source.validation.name).read_text() + "one more,bad\n")
    with pytest.raises(DataError, match="holds other rows than those"):
        moved(run, rows)
    with pytest.raises(DataError, match="have changed since"):
        measure_run(run, latency=None)


def test_sources_move_by_their_names(tmp_path: Path) -> None:
    own = {"text": "text", "label": "label"}
    files = Source(train=Path("a/train.csv"), validation=Path("b/dev.csv"), **own)
    there = files.moved_to(tmp_path)
    assert (there.train, there.validation) == (tmp_path / "train.csv", tmp_path / "dev.csv")
    assert there.missing() == tmp_path / "train.csv" and Source("sst2", tmp_path).missing() is None
    assert Source("sst2").moved_to(tmp_path) == Source("sst2", tmp_path)
    with pytest.raises(SettingError, match=r"both files are called rows\.csv"):
        Source(train=Path("a/rows.csv"), validation=Path("b/rows.csv"), **own).moved_to(tmp_path)


def test_what_does_without_training_rows_does_not_tokenize_them(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    encoded = job_module.encode

    def counted(tokenizer: Any, rows: Rows, max_length: int) -> Encoded:
        counts.append(len(rows))
        return encoded(tokenizer, rows, max_length)

    monkeypatch.setattr(job_module, "encode", counted)
    rows, (_, roles) = rows_of(finished), Saved.of(finished).roles()
    assert counts == [len(roles.select), len(roles.validation)]
    assert len(rows.train) > 0 and counts[2:] == [len(roles.train)]


def test_a_folder_that_is_in_use_is_not_measured(finished: Path) -> None:
    with locked(finished), pytest.raises(SettingError, match="is in use by"):
        measure_run(finished, latency=None)
    with pytest.raises(ModelFileError, match="is not a run folder"):
        measure_run(finished.parent)


def test_measuring_again_gives_the_same_sweep(finished: Path) -> None:
    again = measure_run(finished, latency=None)
    assert [row.quality for row in again.rows] == [row.quality for row in load_sweep(finished).rows]
    one = measure_run(finished, subnets=(Subnet(0.5, 0.5),), latency=None)
    assert one.rows[0].quality == again.rows[-1].quality
    assert len(load_sweep(finished).rows) == 4, "measuring a part must not replace the sweep of the whole grid"


OTHER = Subnet.parse("h1-n0.5-d0.5")


@pytest.fixture
def measured(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_sizes_outside_the_grid_join_the_sweep_and_stay(measured: Path) -> None:
    grid = load_sweep(measured)
    one = measure_run(measured, subnets=(OTHER, OTHER), latency=None)
    joined = load_sweep(measured)
    assert joined.rows == (*grid.rows, *one.rows) and len(one.rows) == 1
    assert joined.pick(must_load="transformers", max_params=one.rows[0].cost.n_params).subnet == OTHER.name
    names = [Subnet.parse(row.subnet) for row in joined.rows]
    assert measure_run(measured, subnets=tuple(names), latency=None).context.fingerprint == joined.context.fingerprint
    assert OTHER.name in (measured / "elastic" / "README.md").read_text()
    measure_run(measured, latency=None)
    assert load_sweep(measured).rows == joined.rows


def changed(run: Path, what: str) -> None:
    """Have the sweep of a run say that it was measured otherwise."""
    if what == "damaged":
        (run / "sweep.json").write_text("{")
        return
    sweep = load_sweep(run)
    contexts = {
        "reference": replace(sweep.context, reference=sweep.context.reference - 0.01),
        "machine": replace(sweep.context, machine=replace(sweep.context.machine, cpu="another cpu")),
        "weights": replace(sweep.context, fingerprint="0" * 16),
        "latency": replace(sweep.context, latency=LatencySettings((1, 8), (16,)), seq_len=16),
    }
    replace(sweep, context=contexts[what]).to_json(run / "sweep.json")


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("reference", "reference"),
        ("machine", "cpu another cpu there"),
        ("weights", "other weights or rows"),
        ("latency", "--subnets h1-n0.5-d0.5 --batch 1,8 --seq 16`"),
        ("damaged", "not valid JSON"),
    ],
)
def test_sizes_are_not_added_to_what_was_measured_otherwise(
    measured: Path, caplog: pytest.LogCaptureFixture, what: str, why: str
) -> None:
    changed(measured, what)
    before = (measured / "sweep.json").read_bytes()
    measure_run(measured, subnets=(OTHER,), latency=None)
    assert (measured / "sweep.json").read_bytes() == before
    (told,) = caplog.messages
    assert "nothing was added" in told and why in told and "\n" not in told
    assert f"`dynabert measure {measured} --no-latency`" in told
    measure_run(measured, latency=None)
    assert [row.subnet for row in load_sweep(measured).rows] == ["w1-d1", "w1-d0.5", "w0.5-d1", "w0.5-d0.5"]


def test_what_the_whole_grid_replaces_is_said(measured: Path, caplog: pytest.LogCaptureFixture) -> None:
    measure_run(measured, subnets=(OTHER,), latency=None)
    changed(measured, "latency")
    measure_run(measured, latency=None)
    (told,) = caplog.messages
    assert (
        "lost times at 1 x 16, times at 8 x 16, sizes outside the grid (1)" in told and "--batch 1,8 --seq 16`" in told
    )
    assert len(load_sweep(measured).rows) == 4


def test_only_the_whole_grid_begins_the_sweep_of_a_run(
    measured: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynabert.engines.torch_engine.has_bf16", lambda device: True)  # else it is refused
    (measured / "sweep.json").unlink()
    measure_run(measured, subnets=(OTHER,), latency=None)
    assert not (measured / "sweep.json").exists() and "begins with the whole grid" in caplog.text
    bf16 = LatencySettings(seq=(8,), repeats=1, dtype="bf16")
    measure_run(measured, subnets=(OTHER,), latency=bf16)
    measure_run(measured, subnets=(Subnet(),), latency=bf16)
    assert [row.subnet for row in load_sweep(measured, dtype="bf16").rows] == [OTHER.name, "w1-d1"]


def test_the_same_command_again_does_nothing_but_measure(finished: Path, job: tuple[Path, Source]) -> None:
    before = sha256_of(finished / "elastic" / "model.safetensors")
    steps: list[int] = []
    hooks = Hooks()
    hooks.stepped = lambda report: steps.append(report.step)  # type: ignore[method-assign]
    train(job[0], job[1], finished, plan=small_plan(), latency=None, hooks=hooks)
    assert steps == []
    assert sha256_of(finished / "elastic" / "model.safetensors") == before


def test_a_run_goes_on_in_the_precision_that_it_began_with(
    finished: Path, job: tuple[Path, Source], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plan = small_plan(precision="auto")
    monkeypatch.setattr("dynabert.precision.has_bf16", lambda device: True)
    train(job[0], job[1], finished, plan=plan, latency=None)  # began in fp32
    assert "going on where it was" in caplog.text and "many times as long" not in caplog.text
    with pytest.raises(SettingError, match="precision differ"):
        train(job[0], job[1], finished, plan=small_plan(precision="bf16"), latency=None)


def test_an_unfinished_run_goes_on_in_its_precision_and_a_damaged_one_is_one_line(
    job: tuple[Path, Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, plan = tmp_path / "run", small_plan(precision="auto", saving=Saving(0))
    monkeypatch.setattr("dynabert.precision.has_bf16", lambda device: False)
    with pytest.raises(KeyboardInterrupt):
        train(job[0], job[1], out, plan=plan, latency=None, hooks=Interrupt("width", 3))
    monkeypatch.setattr("dynabert.precision.has_bf16", lambda device: True)
    train(job[0], job[1], out, plan=plan, latency=None)
    assert Saved.of(out).plan.training.precision == "fp32"
    for text in ("[]", '{"fingerprint": 3}'):
        (out / "run.json").write_text(text)
        for asked in (plan, small_plan(saving=Saving(0))):  # also where a precision is asked for
            with pytest.raises(ModelFileError, match="not what `dynabert train` writes"):
                train(job[0], job[1], out, plan=asked, latency=None)


@pytest.mark.parametrize(("has", "expected"), [(True, "bf16"), (False, "fp32")])
def test_a_run_is_made_in_what_the_device_is_fast_at(
    job: tuple[Path, Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has: bool, expected: str
) -> None:
    monkeypatch.setattr("dynabert.precision.has_bf16", lambda device: has)
    train_teacher(job[0], job[1], tmp_path / "run", plan=small_plan(precision="auto"))
    assert Saved.of(tmp_path / "run").plan.training.precision == expected


@pytest.mark.parametrize(("stage", "step"), [("teacher", 7), ("width", 3), ("depth", 4)])
def test_resumed_equals_uninterrupted_bit_for_bit(
    finished: Path, job: tuple[Path, Source], tmp_path: Path, stage: str, step: int
) -> None:
    plan = small_plan(saving=Saving(0))
    with pytest.raises(KeyboardInterrupt):
        train(job[0], job[1], tmp_path / "run", plan=plan, latency=None, hooks=Interrupt(stage, step))
    assert list((tmp_path / "run" / "checkpoints").glob(f"{stage}-*")), "the interrupted stage left a checkpoint"
    train(job[0], job[1], tmp_path / "run", plan=plan, latency=None)
    resumed, whole = (load(folder / "elastic").state_dict() for folder in (tmp_path / "run", finished))
    for name, tensor in whole.items():
        assert torch.equal(resumed[name], tensor), name


class Signal(Hooks):
    """Asks the process to stop when a stage has taken a step."""

    def __init__(self, stage: str, step: int) -> None:
        self.stage, self.step = stage, step

    def stepped(self, report: StepReport) -> None:
        if (report.stage, report.step) == (self.stage, self.step):
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("place", ["in a stage", "at its end", "scoring", "measuring"])
def test_a_stopped_run_says_what_is_saved_and_goes_on_bit_for_bit(
    finished: Path, job: tuple[Path, Source], tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, hooks, says = tmp_path / "run", Hooks(), "nothing was under way"
    lines = read_metrics(finished / "metrics.jsonl")
    n_steps = next(line["n_steps"] for line in lines if line["stage"] == "width" and "n_steps" in line)
    if place == "in a stage":
        hooks, says = Signal("width", 5), r"stage 'width' is saved at step 6; run the same command again"
    elif place == "at its end":  # its result is saved, not thrown away
        hooks.evaluated = lambda stage, step, score, best: (  # type: ignore[method-assign, assignment]
            signal.raise_signal(signal.SIGTERM) if (stage.name, step) == ("width", n_steps) else None
        )
    else:
        name = {"scoring": "score", "measuring": "beside_teacher"}[place]
        monkeypatch.setattr(run_module, name, lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Stopped, match=says), stop_signals():
        train(job[0], job[1], out, plan=small_plan(), latency=None, hooks=hooks)
    monkeypatch.undo()
    if place == "at its end":
        assert (out / "stages" / "width").exists()
    train(job[0], job[1], out, plan=small_plan(), latency=None)
    assert sha256_of(out / "elastic" / "model.safetensors") == sha256_of(finished / "elastic" / "model.safetensors")
    assert not list((out / "checkpoints").glob("*"))


def test_checkpoints_of_a_stage_that_was_saved_go_at_the_next_start(
    finished: Path, job: tuple[Path, Source], tmp_path: Path
) -> None:
    """As a kill between the two leaves them."""
    copy = shutil.copytree(finished, tmp_path / "run")
    for stage in ("teacher", "width", "depth"):
        (copy / "checkpoints" / f"{stage}-00000005").mkdir(parents=True)
    train(job[0], job[1], copy, plan=small_plan(), latency=None)
    assert not list((copy / "checkpoints").iterdir())


def test_a_skipped_step_is_in_the_metrics(
    job: tuple[Path, Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = StageRun.losses

    def losses(
        self: StageRun, step: int, batch: Batch, part: tuple[int, ...]
    ) -> Iterator[tuple[Subnet, dict[str, torch.Tensor]]]:
        for subnet, terms in real(self, step, batch, part):
            bad = (self.stage.name, step) == ("width", 3)
            yield subnet, {name: term * (float("nan") if bad else 1) for name, term in terms.items()}

    monkeypatch.setattr(StageRun, "losses", losses)
    train(job[0], job[1], tmp_path / "run", plan=small_plan(log_every=100), latency=None)
    skipped = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if line.get("skipped")]
    assert [(line["stage"], line["step"], len(line["skipped"])) for line in skipped] == [("width", 3, 16)]
    assert skipped[0]["gradient_norm"] is None


def test_two_stages_of_one_name_are_refused() -> None:
    stage = RECIPES["default"].stages[0]
    with pytest.raises(SettingError, match="same name"):
        Plan(recipe=replace(RECIPES["default"], stages=(stage, stage)))


def test_another_run_in_the_folder_is_refused_and_the_field_named(finished: Path, job: tuple[Path, Source]) -> None:
    plan = small_plan()
    other = {
        "seed": replace(plan, training=replace(plan.training, seed=7)),
        "widths": replace(plan, grid=SubnetGrid((1, 0.25), (1, 0.5))),
        "recipe": replace(plan, recipe=plan.recipe.adjusted(lr=5e-4)),
        "batch_size": replace(plan, batching=replace(plan.batching, batch_size=8)),
    }
    for field, changed in other.items():
        with pytest.raises(SettingError, match=field) as caught:
            train(job[0], job[1], finished, plan=changed, latency=None)
        assert "\n" not in str(caught.value) and "--out" in str(caught.value)


def test_a_folder_that_is_no_run_is_left_alone(job: tuple[Path, Source], tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(SettingError, match="not empty"):
        train(job[0], job[1], tmp_path, plan=small_plan(), latency=None)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_results_of_an_unfinished_or_missing_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="not a run folder"):
        load_result(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ModelFileError, match="has not finished"):
        load_sweep(tmp_path)


def test_a_damaged_result_is_an_error_and_not_trained_again(
    finished: Path, job: tuple[Path, Source], tmp_path: Path
) -> None:
    copy = shutil.copytree(finished, tmp_path / "run")
    weights = copy / "elastic" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    with pytest.raises(ModelFileError, match=r"model\.safetensors"):
        train(job[0], job[1], copy, plan=small_plan(), latency=None)


def test_extract_writes_a_model_that_answers_as_the_view(finished: Path, tmp_path: Path) -> None:
    cut = extract_run(finished, Subnet(0.5, 0.5), tmp_path / "small")
    assert cut.loads_with == "dynabert or trust_remote_code"
    elastic = ElasticModel.from_pretrained(finished / "elastic")
    inputs = {"input_ids": torch.tensor([[0, 5, 14, 2]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    with torch.inference_mode():
        expected = elastic.at(Subnet(0.5, 0.5))(**inputs).logits
        assert torch.allclose(load(tmp_path / "small")(**inputs).logits, expected, atol=1e-5)
    assert cut.n_params == sum(p.numel() for p in load(tmp_path / "small").parameters())


def test_extract_does_not_overwrite_a_folder_of_something_else(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(SettingError, match="not empty"):
        extract_run(finished, Subnet(0.5, 0.5), tmp_path)
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_a_checkpoint_with_the_right_head_is_its_own_teacher(
    finished: Path, job: tuple[Path, Source], tmp_path: Path
) -> None:
    plan = replace(small_plan(), teacher="auto")
    train(finished / "teacher", job[1], tmp_path / "run", plan=plan, latency=None)
    stages = {json.loads(line)["stage"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()}
    assert stages == {"width", "depth"}


def test_source_wants_a_task_or_own_files() -> None:
    with pytest.raises(SettingError, match="--label"):
        Source(train=Path("a.csv"), validation=Path("b.csv"), text="text")
    with pytest.raises(SettingError, match="not both"):
        Source(task="sst2", train=Path("a.csv"))
    with pytest.raises(SettingError, match="task sst2 has a metric of its own; leave out metric matthews"):
        Source(task="sst2", metric="matthews")
    source = Source("sst2", Path("data"), limit=10)
    assert Source.from_json(source.to_json()).folder == Path("data").absolute()
    assert "metric" not in source.to_json(), "by these values studies find what they have kept"


def test_own_rows_are_judged_by_the_metric_asked_for(job: tuple[Path, Source], tmp_path: Path) -> None:
    encoder, source = job
    train(encoder, replace(source, metric="matthews"), tmp_path / "run", plan=small_plan(), latency=None)
    assert Saved.of(tmp_path / "run").roles()[0].metric == "matthews"
    sweep = load_sweep(tmp_path / "run")
    assert sweep.context.metric == "matthews"
    assert {name for row in sweep.rows for name in row.quality.metrics} == {"matthews"}
    with pytest.raises(SettingError, match="metric differ"):
        train(encoder, source, tmp_path / "run", plan=small_plan(), latency=None)


def test_the_finetune_stage_comes_last() -> None:
    plan = Plan(recipe=Plan().recipe.adjusted(finetune=1))
    assert [stage.name for stage in plan.recipe.stages] == ["sandwich", "finetune"]


def test_settings_that_do_not_fit_leave_no_run_folder(job: tuple[Path, Source], tmp_path: Path) -> None:
    for changes in ({"max_length": 2}, {"max_length": 4096}):
        plan = replace(small_plan(), batching=replace(small_plan().batching, **changes))
        with pytest.raises(SettingError, match="max_length"):
            train(job[0], job[1], tmp_path / "run", plan=plan, latency=None)
    with pytest.raises(SettingError, match="latency at 128"):
        train(job[0], job[1], tmp_path / "run", plan=small_plan())
    with pytest.raises(SettingError, match="device"):
        train(job[0], job[1], tmp_path / "run", plan=small_plan(), latency=None, device="tpu")
    assert not (tmp_path / "run").exists()
    with pytest.raises(SettingError, match="batch size 0"):
        Batching(batch_size=0)


def test_a_head_with_other_classes_is_not_taken_for_the_teacher(
    finished: Path, job: tuple[Path, Source], tmp_path: Path
) -> None:
    model, config = shutil.copytree(finished / "teacher", tmp_path / "model"), tmp_path / "model" / "config.json"
    fields = json.loads(config.read_text())
    for names in (["good", "bad"], ["negative", "positive", "mixed"], ["bad", "fine"]):
        config.write_text(json.dumps(fields | {"id2label": dict(enumerate(names)), "label2id": {}}))
        with pytest.raises(SettingError, match=f"no head for the classes bad, good.* has one for {', '.join(names)}"):
            train(model, job[1], tmp_path / "run", plan=replace(small_plan(), teacher=None), latency=None)
    assert not (tmp_path / "run").exists()


def test_a_head_with_other_names_is_taken_where_that_is_asked_for(
    finished: Path, job: tuple[Path, Source], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, config = shutil.copytree(finished / "teacher", tmp_path / "model"), tmp_path / "model" / "config.json"
    named = {"id2label": {0: "NEGATIVE", 1: "POSITIVE"}, "label2id": {}}
    config.write_text(json.dumps(json.loads(config.read_text()) | named))
    kept = prepare(model, job[1], replace(small_plan(), teacher=None), latency=None)
    assert "NEGATIVE = bad, POSITIVE = good" in caplog.text
    assert kept.plan.teacher is None and kept.elastic.model.config.id2label == {0: "bad", 1: "good"}
    caplog.clear()
    anew = prepare(model, job[1], replace(small_plan(), teacher="auto"), latency=None)
    assert isinstance(anew.plan.teacher, Stage), "nobody said that they are the same classes"
    assert "a head for NEGATIVE, POSITIVE" in caplog.text and "--teacher-epochs 0" in caplog.text


def test_measuring_other_rows_than_the_runs_is_refused(finished: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished, tmp_path / "run")
    saved = json.loads((copy / "run.json").read_text())
    rows = Path(saved["source"]["validation"]).read_text().splitlines()
    (tmp_path / "other.csv").write_text("\n".join(rows[:-1]) + "\n")
    saved["source"]["validation"] = str(tmp_path / "other.csv")
    (copy / "run.json").write_text(json.dumps(saved))
    with pytest.raises(DataError, match="have changed"):
        measure_run(copy, latency=None)


def test_extract_does_not_write_into_the_run(finished: Path) -> None:
    before = sha256_of(finished / "elastic" / "model.safetensors")
    with pytest.raises(SettingError, match="inside the run"):
        extract_run(finished, Subnet(0.5, 0.5), finished / "elastic")
    assert sha256_of(finished / "elastic" / "model.safetensors") == before


def test_padded_heads_load_with_stock_transformers(finished: Path, tmp_path: Path) -> None:
    cut = extract_run(finished, Subnet(0.5, 0.5), tmp_path / "small", pad_heads=True)
    assert cut.loads_with == "transformers"
    assert json.loads((tmp_path / "small" / "config.json").read_text())["model_type"] == "bert"


def test_a_finished_run_keeps_its_sweep_and_says_what_was_not_trained(
    job: tuple[Path, Source], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = LatencySettings(batch=(1,), seq=(8,), repeats=1)
    first = train(job[0], job[1], tmp_path / "run", plan=small_plan(), latency=settings)
    before = sha256_of(tmp_path / "run" / "sweep.json")
    again = train(job[0], job[1], tmp_path / "run", plan=small_plan(), latency=None)
    assert again == first and sha256_of(tmp_path / "run" / "sweep.json") == before
    extract_run(tmp_path / "run", Subnet(0.5, 0.5), tmp_path / "trained")
    assert "not trained" not in caplog.text
    extract_run(tmp_path / "run", Subnet(0.25, 0.5), tmp_path / "other")
    assert "w0.25-d0.5 was not trained" in caplog.text
    (tmp_path / "file").touch()
    with pytest.raises(SettingError, match="is a file"):
        extract_run(tmp_path / "run", Subnet(0.5, 0.5), tmp_path / "file")
