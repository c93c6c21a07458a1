"""Latency as a budget: predicted while searching, measured in the end, and said so where the two differ."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from calling import call
from small_studies import made_sweep

from dynabert.elastic import ElasticModel
from dynabert.errors import SettingError
from dynabert.latency_model import LatencyModel
from dynabert.measure import machine_of
from dynabert.measurement import LatencySettings, Timing
from dynabert.results import load_result, load_sweep, sweep_file
from dynabert.search import UNIFORM, CostLimit, Effort, search_run
from dynabert.search.latency import LatencyCheck, TimedSize
from dynabert.subnet import LayerSlice, Subnet, encoder_flops
from dynabert.sweep import Sweep

pytest.importorskip("optuna")

TRIALS = Effort(minutes=60, trials=30)
SHAPES = LatencySettings((1, 2), (8, 16), repeats=3)
FOUR_MS = CostLimit("latency_ms", limit=4)
GRID = ("w1-d1", "w1-d0.5", "w0.5-d1", "w0.5-d0.5")
NARROW, SHALLOW = "w0.5-d1", "w1-d0.5"
UNDER, OVER = 3.9, 4.1


def true_ms(elastic: ElasticModel, slices: tuple[LayerSlice, ...], shape: tuple[int, int]) -> float:
    """1 ms a call, 0.25 a layer, and the full network 6 in all."""
    batch, seq = shape
    full = encoder_flops(elastic.shape, elastic.slices(Subnet()), 16) * 2
    return 1 + 0.25 * len(slices) + 4 * batch * encoder_flops(elastic.shape, slices, seq) / full


def timed(elastic: ElasticModel, *, engine: str = "torch", **changed: float) -> Sweep:
    """The grid, timed to the letter of the model, but for some sizes at 2 x 16 tokens.

    :param changed: milliseconds, by the name of a size with underlines.
    """
    settings = replace(SHAPES, engine=engine)
    other = {name.replace("_", "-").replace("05", "0.5"): ms for name, ms in changed.items()}
    sweep, rows = made_sweep(GRID), []
    for row in sweep.rows:
        slices = elastic.slices(Subnet.parse(row.subnet))
        ms = {shape: true_ms(elastic, slices, shape) for shape in settings.shapes}
        ms[2, 16] = other.get(row.subnet, ms[2, 16])
        timings = tuple(Timing(*shape, took, took, 0.0) for shape, took in ms.items())
        rows.append(replace(row, cost=replace(row.cost, latency_ms=timings[0].median_ms, timings=timings)))
    version = ""
    if engine != "torch":
        from dynabert.engines import engine_of

        version = f"{engine} {engine_of(engine, 'fp32').version}"
    machine = machine_of(torch.device("cpu"), n_threads=1, engine=version)
    return Sweep(tuple(rows), replace(sweep.context, latency=settings, machine=machine))


@pytest.fixture
def elastic(run: Path) -> ElasticModel:
    return load_result(run)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], list[tuple[str, ...]]]:
    """Have every size that is measured after a search take so many ms; what was measured comes in the list."""

    def at(ms: float) -> list[tuple[str, ...]]:
        asked: list[tuple[str, ...]] = []

        def stand_in(run: Path, *, subnets: tuple[Subnet, ...], latency: LatencySettings, **_: object) -> Sweep:
            asked.append(tuple(subnet.name for subnet in subnets))
            sweep = made_sweep(asked[-1])
            timing = Timing(*latency.shapes[0], ms, ms, 0.0)
            rows = [replace(row, cost=replace(row.cost, latency_ms=ms, timings=(timing,))) for row in sweep.rows]
            return Sweep(tuple(rows), replace(sweep.context, latency=latency))

        monkeypatch.setattr("dynabert.search.latency.measure_run", stand_in)
        return asked

    return at


def test_what_is_found_is_predicted_to_fit_and_then_measured(run: Path, elastic: ElasticModel) -> None:
    sweep = timed(elastic).at(batch=2, seq=16)
    result = search_run(run, FOUR_MS, effort=TRIALS, sweep=sweep)
    uniform, found = result.standings[0], result.found
    assert uniform.how == UNIFORM and uniform.subnet in (NARROW, SHALLOW)
    for row in result.standings:
        assert row.cost == pytest.approx(true_ms(elastic, elastic.slices(Subnet.parse(row.subnet)), (2, 16)))
        assert row.cost <= 4
    check = result.latency
    assert check is not None and check.worst < 1e-6 and check.limit == 4
    assert check.settings == replace(SHAPES, batch=(2,), seq=(16,), n_threads=1)  # the threads of the Sweep's machine
    assert [(row.how, row.subnet) for row in check.sizes] == [(row.how, row.subnet) for row in (uniform, found)]
    for row, standing in zip(check.sizes, (uniform, found), strict=True):
        assert row.predicted_ms == standing.cost and 0 < row.measured_ms <= row.p95_ms
        assert row.metric == pytest.approx(standing.validation)  # deployed as it was judged: PyTorch in fp32
    saved = json.loads((run / "search" / "latency-ms-4-torch-fp32-2x16.json").read_text())
    assert saved["result"] == json.loads(json.dumps(result.to_dict()))
    assert saved["result"]["latency"]["holds"] == (check.found.measured_ms <= 4)
    assert "torch fp32, 2 x 16 tokens, 1 threads" in result.table()


def test_the_grid_s_best_is_by_measured_latency(
    run: Path, elastic: ElasticModel, measured: Callable[[float], list[tuple[str, ...]]]
) -> None:
    measured(UNDER)
    for slow, fast in ((NARROW, SHALLOW), (SHALLOW, NARROW)):
        times = {slow.replace("-", "_").replace(".", ""): OVER, fast.replace("-", "_").replace(".", ""): UNDER}
        sweep = timed(elastic, w05_d05=OVER, **times).at(batch=2, seq=16)
        result = search_run(run, FOUR_MS, effort=Effort(minutes=60, trials=8), sweep=sweep)
        model = LatencyModel.fit(sweep, elastic.described)
        assert model.ms(elastic.slices(Subnet(0.5, 0.5))) < 4  # by its predicted latency it could be chosen
        assert [row.subnet for row in result.standings if row.how == UNIFORM] == [fast]


def test_a_limit_that_does_not_hold_is_said_with_what_to_ask_for(
    run: Path, elastic: ElasticModel, measured: Callable[[float], list[tuple[str, ...]]]
) -> None:
    asked, sweep = measured(5.0), timed(elastic).at(batch=2, seq=16)
    result = search_run(run, FOUR_MS, effort=TRIALS, sweep=sweep)
    assert asked == [(result.standings[0].subnet, result.found.subnet)]
    check, uniform = result.latency, result.standings[0].subnet
    assert check is not None and not check.holds
    swept = true_ms(elastic, elastic.slices(Subnet.parse(uniform)), (2, 16))
    assert [row.swept_ms for row in check.sizes] == [pytest.approx(swept), None]
    assert check.ask_for is not None and 0 <= result.found.cost * 4 / 5 - check.ask_for < 0.01
    table = result.table()
    assert "OVER THE LIMIT: per layer takes 5 ms, more than 4 ms" in table
    assert f"ask for less, as predictions go: --max-latency-ms {check.ask_for:g}\n" in table
    measured(3.0)
    again = search_run(run, FOUR_MS, effort=TRIALS, sweep=sweep)
    assert again.standings == result.standings
    assert again.latency is not None and again.latency.holds and again.latency.ask_for is None
    assert f"{uniform} took {check.sizes[0].swept_ms:.4g} ms then, 5 ms now" in table
    assert "OVER" not in again.table() and "within the limit: per layer takes 3 ms of 4 ms" in again.table()


@pytest.mark.parametrize(
    ("predicted", "measured_ms", "ask_for"),
    [(4.0, 4.0, None), (4.0, 4.1, 3.90), (4.2, 4.1, 3.90), (3.0, 8.0, 1.5), (400.0, 5000.0, 0.0032)],
)
def test_what_to_ask_for_is_less_than_the_limit(predicted: float, measured_ms: float, ask_for: float | None) -> None:
    size = TimedSize("per layer", "w1-d1", predicted, measured_ms, measured_ms, 90.0)
    check = LatencyCheck(SHAPES, 4.0, 0.01, 0.02, (size,))
    assert check.ask_for == ask_for
    assert ask_for is None or ask_for < check.limit


def test_a_machine_that_has_changed_is_told_from_a_wrong_prediction() -> None:
    uniform, found = TimedSize(UNIFORM, "w1-d1", 4.0, 4.2, 4.2, 90.0, 3.9), TimedSize("per layer", "a", 4, 6, 6, 90.0)
    check = LatencyCheck(SHAPES, 4.0, 0.01, 0.02, (uniform, found))
    assert "OVER THE LIMIT: uniform grid takes 4.2 ms" in check.table() and "machine" not in check.table()
    slower = replace(check, sizes=(replace(uniform, measured_ms=4.3), found))
    assert "the machine is not as it was when the grid was measured: w1-d1 took 3.9 ms then, 4.3 ms" in slower.table()


def test_latency_that_is_measured_again_begins_anew(
    run: Path, elastic: ElasticModel, n_predicted: list[str], measured: Callable[[float], list[tuple[str, ...]]]
) -> None:
    measured(UNDER)
    sweep = timed(elastic).at(batch=2, seq=16)
    search_run(run, FOUR_MS, effort=TRIALS, sweep=sweep)
    n_predicted.clear()
    search_run(run, FOUR_MS, effort=TRIALS, sweep=sweep)
    assert not n_predicted
    slower = timed(elastic, w1_d1=7.0).at(batch=2, seq=16)
    search_run(run, FOUR_MS, effort=Effort(minutes=1e-9), sweep=slower)
    assert len(n_predicted) <= 1  # its own time is counted, not the Subnets that the earlier prices went through


def test_what_gives_no_budget_is_refused(run: Path, elastic: ElasticModel) -> None:
    with pytest.raises(SettingError, match="needs measured sizes"):
        search_run(run, FOUR_MS)
    alike = timed(elastic, w1_d1=2.0, w05_d1=2.0, w1_d05=1.5, w05_d05=1.5).at(batch=2, seq=16)
    with pytest.raises(SettingError, match="torch-fp32-2x16 does not grow with heads and neurons"):
        search_run(run, FOUR_MS, sweep=alike)
    with pytest.raises(SettingError, match=r"a budget of 0.5 is too small: the smallest Subnet costs 2; raise it"):
        search_run(run, CostLimit("latency_ms", limit=0.5), sweep=timed(elastic).at(batch=2, seq=16))


def test_from_the_command_line_on_an_engine(
    run: Path, elastic: ElasticModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    form = ("--engine", "onnxruntime", "--batch", 2, "--seq", 16)
    arguments = ("search", run, "--max-latency-ms", 4, "--trials", 8)
    assert call(monkeypatch, *arguments, *form) == 3
    assert f"run `dynabert measure {run} --engine onnxruntime --dtype fp32`" in capsys.readouterr().err
    sweep = timed(elastic, engine="onnxruntime")
    path = run / sweep_file("onnxruntime", "fp32")
    replace(sweep, context=replace(sweep.context, machine=replace(sweep.context.machine, cpu="another"))).to_json(path)
    assert call(monkeypatch, *arguments, *form) == 2
    assert "measured elsewhere (cpu another there" in capsys.readouterr().err
    sweep.to_json(path)
    assert call(monkeypatch, *arguments, *form) == 0
    shown = capsys.readouterr().out.splitlines()
    found = json.loads((run / "search" / "latency-ms-4-onnxruntime-fp32-2x16.json").read_text())["result"]
    how = "--engine onnxruntime --dtype fp32 --batch 2 --seq 16 --out deploy/"
    assert shown[-1] == f"write it: dynabert export {run} --subnet {found['found']} {how}"
    options = "--batch 1,2 --seq 8,16 --repeats 3 --engine onnxruntime"  # as the grid was measured
    assert shown[-2] == f"have pick know it: dynabert measure {run} --subnets {found['found']} {options}"
    assert Sweep.from_json(path) == sweep, "what is measured in the end stays out of the file"
    assert "onnxruntime fp32, 2 x 16 tokens, 1 threads" in "\n".join(shown)
    for size, standing in zip(found["latency"]["sizes"], (found["standings"][0], found["standings"][-1]), strict=True):
        assert size["measured_ms"] > 0 and size["metric"] == pytest.approx(standing["validation"])
    assert call(monkeypatch, "search", run, "--max-flops-share", 0.5, *form) == 2
    assert "give --max-latency-ms, or leave them" in capsys.readouterr().err
    assert call(monkeypatch, *arguments, "--max-flops", 1e9) == 2


def test_measuring_the_grid_says_how_far_others_can_be_predicted(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("measure", run, "--repeats", 2, "--seq", 8)
    assert call(monkeypatch, *arguments) == 0
    model = LatencyModel.fit(load_sweep(run), load_result(run).described)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == model.describe() and f"off by {model.error:.1%} in the median" in last and "1 x 8 tokens" in last
    for silent in ((*arguments, "--subnet", "w0.5-d1"), ("measure", run, "--no-latency")):
        assert call(monkeypatch, *silent) == 0
        assert "can be predicted" not in capsys.readouterr().out
    assert call(monkeypatch, *arguments, "--json") == 0
    assert json.loads(capsys.readouterr().out)["rows"]
