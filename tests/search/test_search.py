"""A search on a finished run: what it returns, what it keeps, and that it goes on where it stopped."""

import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from calling import call

from dynabert.batches import Batch
from dynabert.elastic import ElasticModel
from dynabert.errors import SettingError
from dynabert.loading import load_tokenizer
from dynabert.measure import labels_of, predict
from dynabert.results import load_result, load_sweep
from dynabert.saved import Saved
from dynabert.search import (
    ALIKE,
    NEAREST,
    PER_LAYER,
    UNIFORM,
    CostLimit,
    Effort,
    budget_of,
    search_run,
    space_of,
)
from dynabert.search.explore import Pace, explore
from dynabert.search.scoring import HOPELESS, Score, Scorer, distances, parts_of
from dynabert.search.space import Price, Space
from dynabert.statistics import ROW_METRICS
from dynabert.subnet import EncoderShape, Subnet, encoder_flops

pytest.importorskip("optuna")

HALF = CostLimit(share=0.5)
TRIALS = Effort(minutes=60, trials=60)


def test_what_is_found_fits_the_budget_and_is_what_its_name_says(run: Path) -> None:
    result = search_run(run, HALF, effort=TRIALS)
    elastic = load_result(run)
    full = encoder_flops(elastic.shape, elastic.slices(Subnet()))
    rows = Saved.of(run).rows(load_tokenizer(run / "elastic"))
    labels = labels_of(rows.validation)
    assert [standing.how for standing in result.standings] == [UNIFORM, NEAREST, ALIKE, PER_LAYER]
    for standing in result.standings:
        subnet = Subnet.parse(standing.subnet)
        assert encoder_flops(elastic.shape, elastic.slices(subnet)) == standing.cost <= full / 2
        logits = predict(elastic.at(subnet), rows.validation)
        assert standing.validation == pytest.approx(100 * ROW_METRICS["accuracy"](labels, logits))
        np.testing.assert_array_equal(logits, result.logits[standing.how])
    uniform, nearest, alike, found = result.standings
    grid = {subnet.name for subnet in elastic.grid}
    assert uniform.gain is None and {uniform.subnet, nearest.subnet} <= grid
    assert found.loss <= alike.loss <= nearest.loss  # each may choose from all that the one before may
    assert found.gain is not None
    assert found.gain.mean == pytest.approx(found.validation - uniform.validation)
    assert found.gain.low <= found.gain.mean <= found.gain.high
    assert "per layer" in result.table() and found.subnet in result.table()


def test_gains_are_over_the_row_of_the_grid_with_the_best_metric(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elastic = load_result(run)
    budget = CostLimit(share=0.8)
    space = space_of(elastic, budget)
    uniform = [subnet.name for subnet in elastic.grid if space.price(elastic.slices(subnet)) <= space.budget]
    near, good, equal = uniform[:3]
    made = {near: Score((0.1,), 0.7, 0.0), good: Score((0.2,), 0.8, 0.0), equal: Score((0.3,), 0.8, 0.0)}
    monkeypatch.setattr(Scorer, "_scored", lambda _, subnet, best: made.get(subnet.name, Score((0.4,), 0.6, 0.0)))
    result = search_run(run, budget, effort=Effort(minutes=60, trials=8))
    at = {standing.how: standing for standing in result.standings}
    assert (at[UNIFORM].subnet, at[NEAREST].subnet) == (good, near)
    assert at[UNIFORM].gain is None
    for how in (NEAREST, ALIKE, PER_LAYER):
        gain = at[how].gain
        assert gain is not None and gain.mean == pytest.approx(at[how].validation - at[UNIFORM].validation)


def test_without_optuna_nothing_is_scored(run: Path, monkeypatch: pytest.MonkeyPatch, n_predicted: list[str]) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SettingError, match=r"pip install 'dynabert\[search\]'"):
        search_run(run, HALF, effort=TRIALS)
    assert not n_predicted and not (run / "search").exists()


def test_the_choice_does_not_look_at_the_validation_rows(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = search_run(run, HALF, effort=TRIALS).found.subnet
    shutil.rmtree(run / "search")
    monkeypatch.setattr(
        "dynabert.search.predict", lambda view, batches: torch.randn(len(labels_of(batches)), 2).numpy()
    )
    assert search_run(run, HALF, effort=TRIALS).found.subnet == found


def test_the_same_search_again_predicts_nothing_and_says_the_same(run: Path, n_predicted: list[str]) -> None:
    first = search_run(run, HALF, effort=TRIALS)
    tried = len(n_predicted)
    assert tried >= first.n_tried and len(set(n_predicted)) == tried
    assert search_run(run, HALF, effort=TRIALS).standings == first.standings
    assert len(n_predicted) == tried
    saved = json.loads((run / "search" / "flops-share-0.5.json").read_text())
    assert saved["result"]["found"] == first.found.subnet and set(saved["scores"]) <= set(n_predicted)


def test_an_interrupted_search_goes_on_to_the_same_end(run: Path, n_predicted: list[str]) -> None:
    whole = search_run(run, HALF, effort=TRIALS)
    tried = list(n_predicted)
    shutil.rmtree(run / "search")
    search_run(run, HALF, effort=Effort(minutes=60, trials=50))
    n_predicted.clear()
    assert search_run(run, HALF, effort=TRIALS).standings == whole.standings
    assert n_predicted == tried[-len(n_predicted) :]  # only what had not been tried yet


def test_time_that_is_spent_stays_spent(run: Path, n_predicted: list[str]) -> None:
    first = search_run(run, HALF, effort=Effort(minutes=0.01))
    n_predicted.clear()
    again = search_run(run, HALF, effort=Effort(minutes=0.01))
    assert not n_predicted and again.standings == first.standings


def test_loading_and_the_rows_of_the_grid_take_time_too(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(run: Path) -> ElasticModel:
        time.sleep(0.5)
        return load_result(run)

    monkeypatch.setattr("dynabert.search.load_result", loaded)
    elastic = load_result(run)
    result = search_run(run, HALF, effort=Effort(minutes=1e-9))
    space = space_of(elastic, HALF)
    assert result.n_tried == sum(space.price(elastic.slices(subnet)) <= space.budget for subnet in elastic.grid)
    saved = json.loads((run / "search" / "flops-share-0.5.json").read_text())
    scoring = sum(score["seconds"] for score in saved["scores"].values())
    assert scoring > 0 and saved["seconds"] > 0.5 + scoring
    small = search_run(run, CostLimit(share=0.2), effort=Effort(minutes=1e-9))  # none of the grid is as small
    assert small.n_tried == 1


def test_what_is_known_stays_known(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = run / "search" / "flops-share-0.5.json"

    def saved() -> tuple[set[str], int, float]:
        content = json.loads(path.read_text())
        return set(content["scores"]), content["n"], content["seconds"]

    search_run(run, HALF, effort=TRIALS)
    whole = saved()
    monkeypatch.setattr("dynabert.search.SAVE_EVERY_S", -1)  # after every Subnet
    told = 0

    def stop(*_: object) -> None:
        nonlocal told
        told += 1
        if told == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search_run(run, HALF, effort=TRIALS, progress=stop)  # while it goes through what is known
    assert saved() == whole
    search_run(run, HALF, effort=Effort(minutes=60, trials=10))
    assert saved() == whole
    search_run(run, HALF, effort=Effort(minutes=60, trials=10, seed=1))
    assert saved()[0] >= whole[0]


def test_budgets_share_scores_and_other_weights_do_not(run: Path, n_predicted: list[str]) -> None:
    search_run(run, HALF, effort=TRIALS)
    known = set(n_predicted)
    n_predicted.clear()
    elastic = load_result(run)
    full = encoder_flops(elastic.shape, elastic.slices(Subnet()))
    search_run(run, CostLimit(limit=full * 0.5), effort=TRIALS)
    assert not n_predicted  # the same budget by another name
    path = run / "search" / "flops-share-0.5.json"
    saved = json.loads(path.read_text())
    for other in (run / "search").glob("*.json"):
        other.write_text(json.dumps(saved | {"fingerprint": "of another network"}))
    search_run(run, HALF, effort=TRIALS)
    assert set(n_predicted) == known
    path.write_text("{")
    n_predicted.clear()
    (run / "search" / f"flops-{full * 0.5:.15g}.json").unlink()
    search_run(run, HALF, effort=TRIALS)
    assert set(n_predicted) == known  # a damaged file is as if it were not there


def test_parameters_are_a_budget_too(run: Path) -> None:
    elastic = load_result(run)
    small = sum(parameter.numel() for parameter in elastic.extract(Subnet(0.5, 0.5)).parameters())
    result = search_run(run, CostLimit("n_params", limit=small), effort=Effort(minutes=60, trials=20))
    for standing in result.standings:
        cut = elastic.extract(Subnet.parse(standing.subnet))
        assert sum(parameter.numel() for parameter in cut.parameters()) == standing.cost <= small


def test_a_budget_below_the_grid_has_no_baseline(run: Path) -> None:
    result = search_run(run, CostLimit(share=0.2), effort=Effort(minutes=60, trials=12))
    assert "uniform grid" not in {standing.how for standing in result.standings}
    assert result.found.gain is None


def test_a_hopeless_subnet_is_scored_on_fewer_rows(run: Path) -> None:
    elastic = load_result(run)
    prepared = Saved.of(run).rows(load_tokenizer(run / "elastic"))
    score = Scorer(elastic.at, prepared.select, task=prepared.task)
    good = score(Subnet())
    assert good.loss == pytest.approx(0, abs=1e-9) and len(good.losses) == 4
    logits = predict(elastic.at(Subnet(0.5, 0.5)), prepared.select)
    whole = score(Subnet(0.5, 0.5))
    by_row = distances(logits, predict(elastic.at(Subnet()), prepared.select))
    assert whole.loss == pytest.approx(by_row.mean(), rel=0.05)
    assert whole.metric == ROW_METRICS["accuracy"](labels_of(prepared.select), logits)
    poor = Scorer(elastic.at, prepared.select, task=prepared.task)(Subnet(0.5, 0.5), good)
    assert len(poor.losses) == 1 and poor.metric is None and poor.losses[0] == whole.losses[0]
    for n_parts, limit in enumerate(HOPELESS, 1):  # just within the limit before, just outside this one
        best = Score(tuple(loss / (1.01 * limit) for loss in whole.losses), 0.5, 0.0)
        short = Scorer(elastic.at, prepared.select, task=prepared.task)(Subnet(0.5, 0.5), best)
        assert short.losses == whole.losses[:n_parts] and short.metric is None
        assert short.beside(best) == pytest.approx(1.01 * limit)
    again = Scorer(elastic.at, prepared.select, task=prepared.task, known={"w0.5-d0.5": short})
    assert again(Subnet(0.5, 0.5), best) is short
    easier = Score(tuple(loss / 1.05 for loss in whole.losses), 0.5, 0.0)  # of a smaller budget, say
    assert again(Subnet(0.5, 0.5), easier).metric == whole.metric, "what was hopeless elsewhere is not so here"
    near = Score(tuple(loss / 1.05 for loss in whole.losses), 0.5, 0.0)
    assert Scorer(elastic.at, prepared.select, task=prepared.task)(Subnet(0.5, 0.5), near).losses == whole.losses


def test_parts_hold_each_row_once_and_answer_alike(run: Path) -> None:
    elastic = load_result(run)
    batches = list(Saved.of(run).rows(load_tokenizer(run / "elastic")).select)
    parts = parts_of(batches, 4, size=3)
    ids = torch.cat([batch.ids for part in parts for batch in part])
    assert sorted(ids.tolist()) == sorted(torch.cat([batch.ids for batch in batches]).tolist())
    assert max(sum(map(len, part)) for part in parts) - min(sum(map(len, part)) for part in parts) <= 1
    flat: list[Batch] = [batch for part in parts for batch in part]
    np.testing.assert_allclose(predict(elastic.at(Subnet()), flat), predict(elastic.at(Subnet()), batches), atol=1e-5)


def test_regressions_are_compared_by_squares() -> None:
    assert distances(np.array([[1.0], [3.0]]), np.array([[1.0], [1.0]])).tolist() == [0, 4]
    assert distances(np.array([[1.0, 3.0]]), np.array([[2.0, 4.0]]))[0] == pytest.approx(0, abs=1e-12)


def test_pace_counts_earlier_runs_without_the_clock() -> None:
    now = iter(range(0, 1000, 30)).__next__
    pace = Pace(Effort(minutes=1), n_earlier=3, s_earlier=20.0, clock=now)
    went = 0
    while pace.goes_on:
        pace.n += 1
        went += 1
    assert went == 4  # three that are known, and one until 20 s and 30 s become more than a minute
    assert pace.seconds > 60 and pace.reached == 4


def test_pace_counts_from_where_the_search_began() -> None:
    pace = Pace(Effort(minutes=1), since=10.0, clock=lambda: 50.0)
    assert pace.goes_on
    pace.n = 1
    assert pace.seconds == 40 and pace.goes_on
    late = Pace(Effort(minutes=1), n_earlier=2, s_earlier=30.0, since=10.0, clock=lambda: 50.0)
    late.n = 2
    assert not late.goes_on  # 30 s and 40 s
    assert late.seconds == 30 and late.reached == 2  # it has tried nothing new


def test_budgets_are_named_and_checked() -> None:
    assert budget_of(max_flops_share=0.5).name == "flops-share-0.5"
    assert (
        budget_of(max_flops=1.1e9).name == "flops-1100000000" and budget_of(max_params=12e6).name == "params-12000000"
    )
    for wrong in ({}, {"max_flops": 1.0, "max_params": 1.0}, {"max_flops_share": 1.5}, {"max_params": 0.0}):
        with pytest.raises(SettingError):
            budget_of(**wrong)
    with pytest.raises(SettingError, match="above 0"):
        Effort(minutes=0)


def test_views_are_not_kept(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("dynabert.elastic.ElasticModel.at")  # which would keep every view that was ever tried
    assert search_run(run, HALF, effort=Effort(minutes=60, trials=12)).n_tried


def test_a_search_ends_where_nothing_is_left_to_try() -> None:
    class Known(Scorer):
        def __init__(self) -> None:
            self.scores = {}

        def _scored(self, subnet: Subnet, best: Score | None) -> Score:
            return Score((1.0,), 1.0, 0.0)

    shape = EncoderShape(n_layers=1, n_heads=2, head_dim=8, hidden=16, n_neurons=32)
    tiny = Space(shape, ((0,),), Price.of(lambda slices: encoder_flops(shape, slices), shape), 1e9)
    pace = Pace(Effort(minutes=60))
    tried = list(explore(tiny, Known(), uniform=[], seeds=tiny.even_choices(), pace=pace))
    assert [subnet.name for subnet, _ in tried] == ["l0h2n32"] and pace.n <= 110


def test_only_layers_of_trained_depths_are_tried(run: Path) -> None:
    assert space_of(load_result(run), HALF).patterns == ((0, 1, 2, 3), (0, 2))


def test_from_the_command_line(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("search", run, "--max-flops-share", 0.5, "--trials", 20)
    assert call(monkeypatch, *arguments) == 0
    *_, add, cut = capsys.readouterr().out.splitlines()
    assert call(monkeypatch, *arguments, "--json") == 0
    found = json.loads(capsys.readouterr().out)["found"]
    assert cut == f"cut it out: dynabert extract {run} --subnet {found} --out small/"
    assert add == f"have pick know it: dynabert measure {run} --subnets {found} --no-latency"
    assert call(monkeypatch, *add.split()[5:]) == 0
    assert found in [row.subnet for row in load_sweep(run).rows]
    capsys.readouterr()
    assert call(monkeypatch, "extract", run, "--subnet", found, "--out", run.parent / "small") == 0
    assert call(monkeypatch, "search", run) == 2
    assert "--max-flops-share" in capsys.readouterr().err
