"""The dry run: what it says of a run that is known, and that it leaves nothing behind."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from small_job import small_plan, write_job

from dynabert import estimate as module
from dynabert.errors import SettingError
from dynabert.estimate import Estimate, Part, estimate
from dynabert.hooks import Hooks, StepReport
from dynabert.job import prepare
from dynabert.plan import Batching, Source
from dynabert.recipes import RECIPES, Stage
from dynabert.run import disk_bytes, train
from dynabert.sweep import LatencySettings

LATENCY = LatencySettings(seq=(8,), repeats=3)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Source]:
    return write_job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def cost(job: tuple[Path, Source]) -> Estimate:
    out = job[0].parent / "run"
    before = sorted(path for path in job[0].parent.rglob("*"))
    told = estimate(*job, out, plan=small_plan(), latency=LATENCY)
    assert sorted(path for path in job[0].parent.rglob("*")) == before, "nothing is written"
    return told


class Count(Hooks):
    """What a run does."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def stepped(self, report: StepReport) -> None:
        self.counts[report.stage] = self.counts.get(report.stage, 0) + 1

    def evaluated(self, stage: Stage, step: int, score: float, best: bool) -> None:
        name = f"{stage.name}: select"
        self.counts[name] = self.counts.get(name, 0) + 1


def test_a_row_for_each_part_with_the_steps_that_the_run_takes(job: tuple[Path, Source], cost: Estimate) -> None:
    steps = {part.name: part.n_steps for part in cost.parts}
    count = Count()
    out = job[0].parent / "real"
    train(*job, out, plan=small_plan(), latency=LATENCY, hooks=count)
    assert list(count.counts) == ["teacher", "teacher: select", "width", "width: select", "depth", "depth: select"]
    assert {name: steps[name] for name in count.counts} == count.counts
    others = [name for name in steps if name not in count.counts]
    assert others == ["load and tokenize", "rewiring scores", "sweep", "sweep: latency"]
    assert steps["sweep"] == (4 + 1) * 1 and steps["sweep: latency"] == 4 * (2 * 3 + 1)
    weights = (out / "teacher" / "model.safetensors").stat().st_size
    assert 3 * weights < cost.disk_bytes < (3 + 4 * 3 + 1) * weights, "teacher, width, result, three checkpoints"


def test_the_total_is_the_sum_and_the_peak_the_highest(cost: Estimate) -> None:
    assert cost.total_s == pytest.approx(sum(part.total_s for part in cost.parts))
    assert all(part.total_s > 0 and part.step_s > 0 for part in cost.parts)
    assert cost.peak_bytes == max(part.peak_bytes for part in cost.parts) > 50e6
    teacher = next(part for part in cost.parts if part.name == "teacher")
    assert teacher.total_s == pytest.approx(teacher.n_steps * teacher.step_s, rel=1.5)


def test_it_goes_to_json_and_to_text(cost: Estimate) -> None:
    told = json.loads(json.dumps(cost.to_dict()))
    assert told["total_s"] == cost.total_s and told["parts"][0]["name"] == "load and tokenize"
    text = cost.text()
    assert all(part.name in text for part in cost.parts) and "GB free" in text and "ends about" in text
    assert "training in fp32" in text and told["precision"] == "fp32"


def test_the_disk_that_a_run_needs_is_what_the_start_of_a_run_asks_for(
    job: tuple[Path, Source], cost: Estimate
) -> None:
    made = prepare(*job, small_plan(), latency=None)
    weights = sum(4 * parameter.numel() for parameter in made.elastic.model.parameters())
    assert cost.disk_bytes == disk_bytes(job[0].parent / "run", made.plan, made.elastic) == weights * (3 + 4 * 3)


def test_no_teacher_stage_no_rewiring_and_no_latency_have_no_rows(job: tuple[Path, Source], cost: Estimate) -> None:
    plan = replace(small_plan(), recipe=RECIPES["default"].adjusted(epochs=0.1), order="as-is")
    told = estimate(*job, job[0].parent / "run", plan=plan, latency=None)
    assert [part.name for part in told.parts] == [
        *("load and tokenize", "teacher", "teacher: select", "sandwich", "sandwich: select", "sweep"),
    ]


def test_the_precision_is_that_of_the_run_or_of_the_device(
    job: tuple[Path, Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = replace(small_plan(precision="auto"), recipe=RECIPES["default"].adjusted(epochs=0.1), order="as-is")
    monkeypatch.setattr("dynabert.precision.has_bf16", lambda device: True)
    assert estimate(*job, tmp_path / "run", plan=plan, latency=None).precision == "bf16"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text('{"fingerprint": {"precision": "fp32"}}')
    assert estimate(*job, tmp_path / "run", plan=plan, latency=None).precision == "fp32", "as the run began"


# The extrapolation.


def test_a_line_through_exact_times_gives_the_exact_sum() -> None:
    work = [float(n) for n in range(10, 110)]
    seconds = [0.5 + 0.02 * flops for flops in work]
    line = module._Line.through([(place, seconds[place]) for place in module._spread(work, 5)], work)
    assert line.total(work) == pytest.approx(sum(seconds))
    assert line.median_s == pytest.approx(0.5 + 0.02 * 60)


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([(0, 3.0), (1, 2.0), (2, 1.0)], 6.0),  # noise: the longer, the faster. Then all take the same
        ([(0, 0.1), (1, 2.0), (2, 3.9)], 6.0),  # noise: nothing would take less than no time. Then in proportion
        ([(1, 2.0)], 6.0),
    ],
)
def test_a_line_never_runs_below_zero(times: list[tuple[int, float]], expected: float) -> None:
    line = module._Line.through(times, [1.0, 2.0, 3.0])
    assert line.fixed_s >= 0 and line.each_s >= 0
    assert line.total([1.0, 2.0, 3.0]) == pytest.approx(expected)


def test_timed_steps_are_spread_over_the_work_and_distinct() -> None:
    work = [5.0, 1.0, 4.0, 2.0, 3.0, 6.0, 8.0, 7.0]
    assert sorted(work[place] for place in module._spread(work, 4)) == [2.0, 4.0, 6.0, 8.0]
    assert sorted(module._spread(work, 99)) == list(range(8))


def test_settings_that_do_not_fit_are_said_first(job: tuple[Path, Source], tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="max_length"):
        estimate(*job, tmp_path / "run", plan=replace(small_plan(), batching=Batching(max_length=4096)), latency=None)
    assert list(tmp_path.iterdir()) == []


def test_a_part_is_a_plain_value() -> None:
    part = Part("depth", 10, 1.5, 15.0, 1_000_000)
    told = Estimate((part,), 5_000_000, 10**9, "cpu", "2024-02-29T12:00:00+00:00", "bf16")
    assert told.text().splitlines()[-1] == "ends about Thu 29 Feb 12:00 if it starts now; nothing has been written"
