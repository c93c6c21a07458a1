"""Methods beside DynaBERT: points chosen on the select rows, differences of the predictions, nothing trained twice."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_job import small_plan, write_job

from dynabert.baselines import METHODS
from dynabert.errors import SettingError
from dynabert.recipes import TEACHER, Recipe
from dynabert.results import load_result
from dynabert.run import train
from dynabert.studies.compare import OURS, compare
from dynabert.studies.trials import Study, Trial
from dynabert.subnet import Subnet, encoder_flops
from dynabert.sweep import Sweep

ALL_BUT_COSTLY = ("layerdrop-masked", "first-layers")
SETTINGS = {"methods": ["deebert", "layerdrop", "alone"], "n_seeds": 2, "lrs": (5e-4, 2e-3), "budget": 0.5}


ONE_TEACHER_EPOCH = Recipe("", (replace(TEACHER, epochs=1),))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    encoder, source = write_job(tmp_path_factory.mktemp("job"), n_layers=4)
    train(encoder, source, encoder.parent / "run", plan=small_plan(), latency=None)
    return encoder.parent / "run"


def trials_of(run: Path) -> dict[str, Trial]:
    return {path.stem.rsplit("-", 1)[0]: Trial.load(path) for path in (run / "studies" / "trials").iterdir()}


def test_methods_stand_beside_ours_at_equal_cost(run: Path) -> None:
    result = compare(run, **SETTINGS)
    trials, elastic, study = trials_of(run), load_result(run), Study(run, budget=0.5)
    full = encoder_flops(elastic.shape, elastic.slices(Subnet()))
    budget = study.budget_flops
    for name, trial in trials.items():  # who does without the teacher may spend what that cost
        assert trial.training_flops <= 1.01 * (budget + name.startswith("layerdrop") * study.teacher_flops)
    assert study.teacher_flops == pytest.approx(8 * study.cost(ONE_TEACHER_EPOCH))
    assert max(trial.training_flops for name, trial in trials.items() if name.startswith("layerdrop")) > budget
    assert {row.method for row in result.standings} <= {OURS, *SETTINGS["methods"]}
    for row in result.standings:
        if row.point is None or row.metric is None:
            continue  # no point so cheap
        runs = [trials[f"{row.method}-lr{row.lr:g}-{seed}"] for seed in (42, 43)]
        within = [[p for p in trial.points if p.select_flops <= row.share * full] for trial in runs]
        chosen = [max(points, key=lambda p: p.select_metric) for points in within]
        right = [np.mean(t.logits[p.name].argmax(1) == study.labels) for t, p in zip(runs, chosen, strict=True)]
        assert row.metric == pytest.approx(100 * np.mean(right))
        assert row.flops == pytest.approx(np.mean([point.flops for point in chosen]) / full)
        if row.method != OURS:
            ours = next(other for other in result.standings if (other.method, other.share) == (OURS, row.share))
            assert row.difference is not None and row.p_holm is not None
            assert row.difference.mean == pytest.approx(ours.metric - row.metric)
            assert row.difference.low <= row.difference.mean <= row.difference.high
    table = result.table()
    assert "ours - its, 95 %" in table and "…" not in table


def test_what_is_written_has_a_sweep_of_every_method(run: Path) -> None:
    compare(run, **SETTINGS)
    saved = json.loads((run / "studies" / "compare.json").read_text())
    assert set(saved["sweeps"]) == {OURS, *SETTINGS["methods"]}
    made = saved["made"]
    assert (made["budget"], made["limit"], made["machine"]["device"]) == (SETTINGS["budget"], None, "cpu")
    assert 180 < made["n_train"] < 240 and made["date"].startswith("20")  # of 240 rows some are select
    deebert = Sweep.from_dict(saved["sweeps"]["deebert"], what="here")
    layers = [row.n_layers for row in deebert.rows]
    assert layers == sorted(layers, reverse=True), "higher thresholds leave earlier"


def test_nothing_is_trained_twice(run: Path) -> None:
    first = compare(run, **SETTINGS)
    files = {path: path.stat().st_mtime_ns for path in (run / "studies" / "trials").iterdir()}
    assert compare(run, **SETTINGS) == first
    assert {path: path.stat().st_mtime_ns for path in (run / "studies" / "trials").iterdir()} == files


def test_another_recipe_can_stand_for_ours(run: Path) -> None:
    settings = {"methods": ["first-layers"], "lrs": (1e-3,), "budget": 0.5}
    own, other = compare(run, **settings), compare(run, recipe="default", **settings)
    assert (own.recipe, other.recipe) == ("two-stage", "default") and "dynabert: recipe default" in other.table()
    assert other.training_flops == own.training_flops
    assert compare(run, run, recipe="default", **settings).recipe == "default"
    ours, theirs = ([row for row in result.standings if row.method == OURS] for result in (own, other))
    assert [row.n_steps for row in ours] != [row.n_steps for row in theirs]
    for result in (own, other):
        assert result.sweeps["first-layers"] == own.sweeps["first-layers"], "the others are not trained again"


def test_unknown_methods_are_refused(run: Path) -> None:
    with pytest.raises(SettingError, match="deebert"):
        compare(run, methods=["magic"])
    with pytest.raises(SettingError, match="must be above 0"):
        compare(run, n_seeds=0)


def test_a_masked_phase_goes_on_from_the_encoder_of_the_run(run: Path) -> None:
    result = compare(run, methods=["layerdrop-masked", "layerdrop"], budget=0.5)
    trials, budget = trials_of(run), Study(run, budget=0.5)
    one, other = (trials[f"{name}-lr0.002-42"] for name in ("layerdrop-masked", "layerdrop"))
    assert one.training_flops <= 1.01 * (budget.budget_flops + budget.teacher_flops) and one.points != other.points
    assert {row.method for row in result.standings} == {OURS, "layerdrop-masked", "layerdrop"}


def test_a_tokenizer_without_a_mask_does_without_the_masked_phase(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = Study(run).tokenizer
    tokenizer.mask_token = None
    monkeypatch.setattr("dynabert.studies.trials.load_tokenizer", lambda folder: tokenizer)
    with pytest.raises(SettingError, match=r"layerdrop-masked: its masked phase needs a mask token.*leave out"):
        compare(run, methods=["layerdrop-masked", "first-layers"])
    monkeypatch.setattr("dynabert.studies.compare.METHODS", {name: METHODS[name] for name in ALL_BUT_COSTLY})
    with caplog.at_level("INFO", logger="dynabert"):
        result = compare(run, methods=ALL_BUT_COSTLY, budget=0.5)
    assert {row.method for row in result.standings} == {OURS, "first-layers"}
    assert "left out: layerdrop-masked, for its masked phase" in caplog.text


def test_every_method_of_the_table_can_be_compared(run: Path) -> None:
    assert {"deebert", "fastbert", "layerdrop", "first-layers", "first-layers-distilled", "alone"} <= set(METHODS)
