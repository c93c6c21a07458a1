"""Methods beside DynaBERT: points chosen on the select rows, differences of the predictions, nothing trained twice."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_job import small_plan, write_job

from dynabert.baselines import MaskedEncoder
from dynabert.errors import SettingError
from dynabert.hooks import Hooks, StepReport
from dynabert.loading import load
from dynabert.recipes import TEACHER, Recipe
from dynabert.results import load_result
from dynabert.run import train
from dynabert.statistics import Difference
from dynabert.studies.ablate import ablate
from dynabert.studies.compare import ALL, compare
from dynabert.studies.compare_figure import LOOKS, figure
from dynabert.studies.pooling import pooled
from dynabert.studies.standings import CASCADE, OURS, Comparison, Standing
from dynabert.studies.study import Study
from dynabert.studies.trials import Trial
from dynabert.subnet import Subnet, SubnetGrid, encoder_flops
from dynabert.sweep import Sweep
from dynabert.tasks import TASKS

BUDGET = 0.5
SETTINGS = {"methods": ["deebert", "layerdrop", "alone"], "n_seeds": 2, "lrs": (2e-3,), "budget": BUDGET}


ONE_TEACHER_EPOCH = Recipe("", (replace(TEACHER, epochs=1),))


class Count(Hooks):
    """Counts the steps of all trainings, and remembers how many there were to be."""

    def __init__(self) -> None:
        self.steps, self.told = 0, []

    def intended(self, n_trainings: int, budget: float) -> None:
        self.told.append((n_trainings, budget))

    def stepped(self, report: StepReport) -> None:
        self.steps += 1


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    encoder, source = write_job(tmp_path_factory.mktemp("job"), n_layers=4)
    train(encoder, source, encoder.parent / "run", plan=small_plan(), latency=None)
    return encoder.parent / "run"


def trials_of(run: Path) -> dict[str, Trial]:
    return {path.stem.rsplit("-", 1)[0]: Trial.load(path) for path in (run / "studies" / "trials").iterdir()}


def test_methods_stand_beside_ours_at_equal_cost(run: Path) -> None:
    count = Count()
    result = compare(run, **SETTINGS, hooks=count)
    assert count.told == [(len({"layerdrop", "deebert", "alone", OURS}) * 2, BUDGET)], "two seeds each"
    trials, elastic, study = trials_of(run), load_result(run), Study(run, budget=BUDGET)
    full = encoder_flops(elastic.shape, elastic.slices(Subnet()))
    budget = study.budget_flops
    for name, trial in trials.items():  # who does without the teacher may spend what that cost
        own = budget + name.startswith("layerdrop") * study.teacher_flops
        assert 0.85 * own <= trial.training_flops <= 1.01 * own, "whole steps of so few"
    assert study.teacher_flops == pytest.approx(8 * study.cost(ONE_TEACHER_EPOCH))
    assert max(trial.training_flops for name, trial in trials.items() if name.startswith("layerdrop")) > budget
    assert {row.method for row in result.standings} == {OURS, *SETTINGS["methods"]}
    found = {(row.method, row.share) for row in result.standings if row.metric is not None}
    assert found >= {(OURS, 0.5), (OURS, 0.25), ("layerdrop", 0.5), ("alone", 0.5), ("deebert", 0.5)}
    for row in result.standings:
        if row.metric is None:
            continue  # no point so cheap
        runs = [trials[f"{row.method}-lr{row.lr:g}-{seed}"] for seed in (42, 43)]
        within = [[p for p in trial.points if p.select_flops <= row.share * full] for trial in runs]
        chosen = [max(points, key=lambda p: (p.select_metric, -p.select_flops)) for points in within]
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


def test_what_was_written_can_be_pooled_with_other_seeds(run: Path, tmp_path: Path) -> None:
    result = compare(run, **{**SETTINGS, "n_seeds": 1})
    first, other = run / "studies" / "compare.json", tmp_path / "other.json"
    other.write_text(json.dumps({**json.loads(first.read_text()), "seeds": [43]}))
    found = pooled([first, other])
    assert found.seeds == (42, 43)
    for row, own in zip(found.standings, result.standings, strict=True):
        assert (row.method, row.share, row.point, row.metric) == (own.method, own.share, own.point, own.metric)
        if own.difference is not None:
            assert row.difference is not None
            assert row.difference.mean == pytest.approx(own.difference.mean)
            assert row.difference[1:] == pytest.approx(own.difference[1:], abs=1.0), (
                "equal seeds leave that of the rows"
            )
    assert any(row.difference for row in result.standings)


def test_no_number_of_a_full_table_is_cut_off() -> None:
    cascade = Standing(
        method=CASCADE,
        share=0.5,
        point="w0.25-d0.75+w0.75-d0.75@s0.0831469",
        metric=88.125,
        flops=0.4912,
        difference=Difference(-11.25, -12.5, -10.125),
        p_holm=0.0213,
        time=(0.6125, 0.5875),
        lr=3.33e-05,
        n_steps=123456,
        at_edge=True,
    )
    rows = tuple(replace(cascade, method=method) for method in (OURS, *ALL))
    table = Comparison("sst2", "accuracy", 90.0, (42,), 1e14, rows, {}).table()
    assert "…" not in table and table.count("-11.25 [-12.50, -10.12]  0.021  61%  59%  3.33e-05*  123456") == len(rows)
    assert "w0.25-d0.75+w0.75-d0.75@s0.0831 " in table


def test_what_is_written_has_a_sweep_of_every_method(run: Path) -> None:
    compare(run, **SETTINGS)
    saved = json.loads((run / "studies" / "compare.json").read_text())
    assert set(saved["sweeps"]) == set(saved["times"]) == {OURS, *SETTINGS["methods"]}
    for method, sweep in saved["sweeps"].items():
        assert set(saved["times"][method]) == {row["subnet"] for row in sweep["rows"]}
        assert all(share > 0 for pair in saved["times"][method].values() for share in pair)
    made = saved["made"]
    assert (made["budget"], made["limit"], made["machine"]["device"]) == (SETTINGS["budget"], None, "cpu")
    assert 180 < made["n_train"] < 240 and made["date"].startswith("20")  # of 240 rows some are select
    deebert = Sweep.from_dict(saved["sweeps"]["deebert"], what="here")
    layers = [row.n_layers for row in deebert.rows]
    assert layers == sorted(layers, reverse=True), "higher thresholds leave earlier"


def test_the_figure_has_every_point_of_every_method_and_a_panel_for_each_task(run: Path) -> None:
    pytest.importorskip("altair", reason="figures: install dynabert[report]")
    result = compare(run, **SETTINGS)
    twice = {
        name: replace(sweep, context=replace(sweep.context, reference=2 * sweep.context.reference))
        for name, sweep in result.sweeps.items()
    }
    both = replace(result, tasks=(result, replace(result, task="another", sweeps=twice)), sweeps={})
    alone, several = (figure(drawn).to_dict() for drawn in (result, both))
    assert [panel["title"].split(",")[0] for panel in several["concat"]] == [result.task, "another"]
    titles = [chart["title"]["text"] for chart in (alone, several)]
    assert all("seed 42" in title for title in titles), "of two seeds the first is drawn"
    assert all("(layerdrop: " in title for title in titles), "which has more to spend"
    (panel,) = alone["concat"]
    points = alone["datasets"][alone["data"]["name"]]
    assert len(points) == sum(len(sweep.rows) for sweep in result.sweeps.values())
    for name, sweep in result.sweeps.items():
        drawn = {point["point"]: point for point in points if point["method"] == name}
        assert {size for size, point in drawn.items() if point["front"]} == {
            r.subnet for r in sweep.front("flops").rows
        }
        assert {size: point["metric"] for size, point in drawn.items()} == {
            r.subnet: 100 * r.metric for r in sweep.rows
        }
    assert {p["flops"] for p in points if (p["method"], p["point"]) == (OURS, "w1-d1")} == {100}
    chosen = {(p["method"], p["point"]) for p in points if p["chosen"]}
    assert chosen == {(row.method, row.point) for row in result.standings if row.metric is not None}
    teacher, lines, _, marks = panel["layer"]
    assert marks["transform"] == [{"filter": "datum.chosen"}]
    (line,) = alone["datasets"][teacher["data"]["name"]]
    assert line["full"] == pytest.approx(100 * result.sweeps[OURS].context.reference), "that of the seed that is drawn"
    assert lines["transform"] == [{"filter": "datum.front"}]
    low, high = lines["encoding"]["y"]["scale"]["domain"]
    n_below = sum(p["metric"] < low for p in points)
    below = {0: "", 1: ", 1 point below"}.get(n_below, f", {n_below} points below")
    assert panel["title"] == result.task + below
    own = [p["metric"] for p in points if p["method"] == OURS]
    assert low < min(own) <= max(*own, line["full"]) < high
    assert several["concat"][1]["layer"][1]["encoding"]["y"]["scale"]["domain"][1] > 2 * line["full"], "a panel its own"


def test_every_method_has_a_look_of_its_own() -> None:
    assert set(LOOKS) == {OURS, *ALL} and len(set(LOOKS.values())) == len(LOOKS)


def test_nothing_is_trained_twice(run: Path) -> None:
    first = compare(run, **SETTINGS)
    files = {path: path.stat().st_mtime_ns for path in (run / "studies" / "trials").iterdir()}
    assert compare(run, **SETTINGS) == first
    assert {path: path.stat().st_mtime_ns for path in (run / "studies" / "trials").iterdir()} == files


def test_another_recipe_can_stand_for_ours(run: Path) -> None:
    settings = {"methods": ["first-layers"], "lrs": (1e-3,), "budget": BUDGET}
    own, other = compare(run, **settings), compare(run, recipe="default", **settings)
    assert (own.recipe, other.recipe) == ("two-stage", "default")
    assert "ours: dynabert, recipe default" in " ".join(other.table().split())
    assert other.training_flops == own.training_flops
    ours, theirs = ([row for row in result.standings if row.method == OURS] for result in (own, other))
    assert [row.n_steps for row in ours] != [row.n_steps for row in theirs]
    for result in (own, other):
        assert result.sweeps["first-layers"] == own.sweeps["first-layers"], "the others are not trained again"


def test_rates_are_tuned_on_the_select_rows(run: Path) -> None:
    result = compare(run, methods=["first-layers"], lrs=(5e-4, 2e-3), budget=BUDGET)
    full = encoder_flops(load_result(run).shape, load_result(run).slices(Subnet()))
    scores = {}
    for name, trial in trials_of(run).items():
        method, rest = name.split("-lr")
        lr, _, seed = rest.rpartition("-")
        if seed != "42":
            continue
        shares = [[p for p in trial.points if p.select_flops <= share * full * (1 + 1e-9)] for share in (1, 0.5, 0.25)]
        scores[method, float(lr)] = np.mean([max(p.select_metric for p in points) for points in shares if points])
    for row in result.standings:
        tried = {lr: score for (method, lr), score in scores.items() if method == row.method and lr != 1e-3}
        assert len(tried) == 3, "and one beyond the better of the two"
        assert tried[row.lr] == max(tried.values())


def test_unknown_methods_are_refused(run: Path) -> None:
    with pytest.raises(SettingError, match="deebert"):
        compare(run, methods=["magic"])
    with pytest.raises(SettingError, match="must be above 0"):
        compare(run, n_seeds=0)
    with pytest.raises(SettingError, match="budget 1e-09 does not pay one training step"):
        compare(run, methods=["dynabert-cascade"], budget=1e-9)


def test_a_masked_phase_goes_on_from_the_encoder_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, source = write_job(tmp_path, n_layers=4, masked=True)
    run = tmp_path / "run"
    train(encoder, source, run, plan=small_plan(), latency=None)
    given = []

    def masked(study: Study) -> MaskedEncoder:
        given.append(real(study))
        before.append({name: tensor.clone() for name, tensor in given[-1].model.state_dict().items()})
        return given[-1]

    real, before = Study.masked, []
    monkeypatch.setattr(Study, "masked", masked)
    result = compare(run, methods=["layerdrop-masked", "layerdrop"], budget=BUDGET)
    trials, study = trials_of(run), Study(run, budget=BUDGET)
    one, other = (trials[f"{name}-lr0.002-42"] for name in ("layerdrop-masked", "layerdrop"))
    assert one.training_flops <= 1.01 * (study.budget_flops + study.teacher_flops)
    most = next(point.name for point in one.points)
    assert not np.array_equal(one.logits[most], other.logits[most])
    stock = load(encoder, head="ForMaskedLM").state_dict()
    assert len(before) == 1 and all(torch.equal(tensor, stock[name]) for name, tensor in before[0].items())
    changed = given[0].model.state_dict()
    assert not torch.equal(
        changed["bert.embeddings.word_embeddings.weight"], stock["bert.embeddings.word_embeddings.weight"]
    )
    assert {row.method for row in result.standings} == {OURS, "layerdrop-masked", "layerdrop"}
    tokenizer = study.tokenizer
    tokenizer.mask_token = None
    monkeypatch.setattr("dynabert.studies.study.load_tokenizer", lambda folder: tokenizer)
    with pytest.raises(SettingError, match=r"layerdrop-masked: its masked phase needs a mask token.*leave out"):
        compare(run, methods=["layerdrop-masked"])


def test_an_encoder_without_a_head_over_the_vocabulary_does_without_the_masked_phase(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head of random numbers would train the encoder through noise."""
    with pytest.raises(SettingError, match=r"layerdrop-masked: its masked phase needs the encoder's own head.*encoder"):
        compare(run, methods=["layerdrop-masked", "first-layers"])
    monkeypatch.setattr("dynabert.studies.compare.ALL", ("layerdrop-masked", "first-layers"))
    result = compare(run, methods=("layerdrop-masked", "first-layers"), budget=BUDGET)
    assert {row.method for row in result.standings} == {OURS, "first-layers"}
    assert set(result.left_out) == {"layerdrop-masked"} and "Left out: layerdrop-masked" in " ".join(
        result.table().split()
    )


def test_the_best_cascade_stands_beside_the_best_size(run: Path) -> None:
    plain = compare(run, methods=["first-layers"], budget=BUDGET)
    before = trials_of(run)
    count = Count()
    result = compare(run, methods=[CASCADE, "first-layers"], budget=BUDGET, hooks=count)
    by_place = {(row.method, row.share): row for row in result.standings}
    full, study = encoder_flops(load_result(run).shape, load_result(run).slices(Subnet())), Study(run, budget=BUDGET)
    trial = trials_of(run)[f"{CASCADE}-lr0.002-42"]
    assert trial.training_flops == before[f"{OURS}-lr0.002-42"].training_flops and not count.steps, "nothing is trained"
    for share in (0.5, 0.25):
        row, ours = by_place[CASCADE, share], by_place[OURS, share]
        if row.metric is None:
            continue
        assert "+" in row.point and row.difference is not None
        assert row.difference.mean == pytest.approx(ours.metric - row.metric)
        right = trial.logits[row.point].argmax(1) == study.labels
        assert row.metric == pytest.approx(100 * np.mean(right))
        assert next(p for p in trial.points if p.name == row.point).select_flops <= share * full * (1 + 1e-9)
    assert any(row.metric is not None for (method, _), row in by_place.items() if method == CASCADE)
    turned = compare(run, methods=["first-layers"], ours=CASCADE, budget=BUDGET)
    assert turned.ours == CASCADE and f"ours: {CASCADE}" in turned.table()
    for row in turned.standings:
        ours = next(other for other in turned.standings if (other.method, other.share) == (CASCADE, row.share))
        if row.method != CASCADE and row.difference is not None:
            assert row.difference.mean == pytest.approx(ours.metric - row.metric)
    assert plain.ours == OURS


def test_what_an_ablation_has_trained_is_not_trained_again_for_cascades_that_nobody_asks_for(run: Path) -> None:
    ablate(run, factors=["recipe=paper"], n_seeds=1, lrs=(7e-4,), budget=BUDGET)
    count = Count()
    settings = {"recipe": "paper", "lrs": (7e-4,), "budget": BUDGET, "hooks": count}
    compare(run, methods=["first-layers"], **settings)
    of_first_layers = count.steps
    compare(run, methods=["first-layers", CASCADE], **settings)
    trials = trials_of(run)
    assert of_first_layers == trials["first-layers-lr0.0007-42"].n_steps
    assert count.steps - of_first_layers == trials[f"{CASCADE}-lr0.0007-42"].n_steps, "now they are asked for"


def test_a_grid_without_a_pair_has_no_cascade(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynabert.studies.compare.CASCADE_SHARES", (0.2,))  # below its smallest size
    with pytest.raises(SettingError, match=r"dynabert-cascade: the grid of .* has no size of 20% of the FLOPs"):
        compare(run, methods=[CASCADE])
    with pytest.raises(SettingError, match="compare with dynabert"):
        compare(run, methods=["first-layers"], ours=CASCADE)


def test_an_encoder_of_one_layer_has_no_early_exit(tmp_path: Path) -> None:
    encoder, source = write_job(tmp_path, n_layers=1)
    plan = replace(small_plan(), grid=SubnetGrid((1.0, 0.5), (1.0,)))
    train(encoder, source, tmp_path / "run", plan=plan, latency=None)
    with pytest.raises(SettingError, match=r"deebert: early exit needs two layers, and .* has one; leave out deebert"):
        compare(tmp_path / "run", methods=["deebert"])
    with pytest.raises(SettingError, match="have the same validation rows, which would count twice"):
        compare(tmp_path / "run", tmp_path / "run", methods=["first-layers"])


def test_cascades_are_refused_for_a_regression(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "dynabert.studies.compare.Study.task",
        property(lambda self: TASKS["stsb"], lambda self, task: None),
        raising=False,
    )
    with pytest.raises(SettingError, match="dynabert-cascade: early exit needs classes, and stsb is a regression"):
        compare(run, methods=[CASCADE])
    with pytest.raises(SettingError, match="ours 'magic'"):
        compare(run, ours="magic")
