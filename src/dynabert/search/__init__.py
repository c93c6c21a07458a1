"""Per-layer Subnets under a budget, searched on the trained network without training it.

A Subnet is judged by its answers on the `select` rows alone. The baseline is the row of the uniform grid within the
budget that has the best metric on the same rows. The difference is measured on the validation rows, once, at the end.

    space.py     what may be tried, and how it is made to fit a budget
    scoring.py   how good a Subnet is
    sampling.py  where to look next
    explore.py   seeds, then proposals, until the effort is spent
    store.py     what is kept in the run folder; result.py: what was found
    latency.py   milliseconds as the budget: predicted while searching, measured in the end
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dynabert.elastic import ElasticModel, count_params
from dynabert.errors import SettingError
from dynabert.job import Prepared, pick_device
from dynabert.loading import load_tokenizer
from dynabert.measure import Progress, fingerprint_of, labels_of, predict
from dynabert.precision import AUTO, TrainingViews
from dynabert.results import IMPORTANCE_FILE, load_result
from dynabert.rewire import Importance, reordered
from dynabert.saved import Saved
from dynabert.search.explore import Effort, Pace, explore
from dynabert.search.latency import LatencyCheck, Timed, check_latency
from dynabert.search.result import CostLimit, SearchResult, Standing, budget_of
from dynabert.search.sampling import import_optuna
from dynabert.search.scoring import Score, Scorer
from dynabert.search.space import Choice, Price, Slices, Space
from dynabert.search.store import Store
from dynabert.statistics import ROW_METRICS, Difference, paired_difference
from dynabert.subnet import Subnet, encoder_flops
from dynabert.sweep import Sweep

if TYPE_CHECKING:
    from dynabert.plan import Plan

__all__ = [
    "ALIKE",
    "NEAREST",
    "N_RESAMPLES",
    "PER_LAYER",
    "UNIFORM",
    "CostLimit",
    "Effort",
    "SearchResult",
    "Standing",
    "budget_of",
    "search_run",
    "seeds_of",
    "space_of",
]

N_RESAMPLES = 2000
SAVE_EVERY_S = 20.0
UNIFORM, NEAREST = "uniform grid", "uniform grid, nearest"
ALIKE, PER_LAYER = "alike in all layers", "per layer"


def search_run(
    run: str | Path,
    budget: CostLimit,
    *,
    effort: Effort = Effort(),  # noqa: B008 (a frozen value)
    sweep: Sweep | None = None,
    progress: Progress | None = None,
    device: str | None = None,
) -> SearchResult:
    """Search the best Subnet of a finished run within a budget.

    :param run: the run folder. ``search/BUDGET.json`` in it keeps what was tried: the same search goes on from there,
        and other budgets share the scores.
    :param budget: what the Subnet may cost.
    :param effort: how long to search.
    :param sweep: of the grid, with the latency that a budget of latency goes by: that which counts in it, see
        `dynabert.sweep.Sweep.at`. What is found and the grid's best are then measured likewise, by turns.
    :param progress: told ``"search"``, and how many hundredths of the effort are spent.
    :param device: where to compute; by default the GPU if there is one.
    :raises SettingError: a budget that nothing fits, one of latency without a Sweep that can say what sizes take, or
        optuna is not installed.
    :raises DataError: the rows are not those of the run any more.
    """
    began = time.monotonic()
    import_optuna()  # where it is missing, that is said before anything is scored
    run, device = Path(run), pick_device(device)
    elastic, saved = load_result(run), Saved.of(run)
    timed = _timed(budget, sweep, elastic)
    if timed is not None:
        pick_device(timed.device)  # where what is found will be measured
    space = space_of(elastic, budget, timed)
    prepared = saved.rows(load_tokenizer(run / "elastic"))
    elastic.to(device)
    rows = tuple(prepared.select)
    precision = AUTO if saved.plan.training.precision == "bf16" else saved.plan.training.precision
    views = TrainingViews(elastic, precision=precision)  # which keep the last ones; `at` would keep all of them
    fingerprint = f"{fingerprint_of(elastic, list(elastic.grid), rows)}-{views.precision}-{elastic.model.device.type}"
    name = budget.name if timed is None else f"{budget.name}-{timed.form}"
    store = Store(run, name, fingerprint=fingerprint, seed=effort.seed, price=space.price)
    earlier = store.load()
    score = Scorer(views.at, rows, task=prepared.task, known=earlier.scores)
    pace = Pace(effort, n_earlier=earlier.n, s_earlier=earlier.seconds, since=began)
    uniform, seeds = _uniform(elastic, space, timed), seeds_of(run, elastic, space)
    found: dict[str, Score] = {}
    written = time.monotonic()
    for subnet, one in explore(space, score, uniform=uniform, seeds=seeds, pace=pace):
        found[subnet.name] = one
        if progress is not None:
            progress("search", int(100 * pace.share), 100)
        if time.monotonic() - written > SAVE_EVERY_S:
            store.save(found, n=pace.reached, seconds=pace.seconds)
            written = time.monotonic()
    n, seconds = pace.reached, pace.seconds
    chosen = _chosen(found, [subnet.name for subnet in uniform])
    result = _measured(elastic, prepared, chosen, found, budget=budget, space=space, seconds=seconds)
    if timed is not None:
        store.save(found, n=n, seconds=seconds)  # the engine may fail
        result = replace(result, latency=_checked(run, timed, result, progress=progress))
    store.save(found, n=n, seconds=seconds, result=result.to_dict())
    return result


def _timed(budget: CostLimit, sweep: Sweep | None, elastic: ElasticModel) -> Timed | None:
    """What is known of latency, where it is the budget."""
    if budget.cost != "latency_ms":
        return None
    if sweep is None:
        raise SettingError("a budget of latency needs measured sizes; give sweep=load_sweep(run, engine=…, dtype=…)")
    return Timed.of(sweep, elastic)


def _checked(run: Path, timed: Timed, result: SearchResult, *, progress: Progress | None) -> LatencyCheck:
    """The grid's best and what was found, measured as they are deployed."""
    chosen = {row.how: (row.subnet, row.cost) for row in result.standings if row.how == UNIFORM or row == result.found}
    return check_latency(run, timed, chosen, limit=result.limit, progress=progress)


def space_of(elastic: ElasticModel, budget: CostLimit, timed: Timed | None = None) -> Space:
    """What a search may try: the layers of the trained depths, any heads and neurons, within a budget.

    :param timed: what is known of latency, where it is the budget.
    :raises SettingError: a budget that nothing fits, or latency that does not depend on the size.
    """

    def cost(slices: Slices) -> float:
        if budget.cost == "flops":
            return encoder_flops(elastic.shape, slices)
        return count_params(elastic.make_view(slices))

    price = Price.of(cost, elastic.shape) if timed is None else timed.price(elastic.shape)
    patterns = dict.fromkeys(tuple(part.layer for part in elastic.slices(subnet)) for subnet in elastic.grid)
    return Space(elastic.shape, tuple(patterns), price, budget.resolved(price(elastic.slices(Subnet()))))


def _uniform(elastic: ElasticModel, space: Space, timed: Timed | None = None) -> list[Subnet]:
    """The rows of the grid within the budget, by their measured latency where that is known."""
    if timed is not None:
        return [subnet for subnet in elastic.grid if timed.within(subnet, space.budget)]
    return [subnet for subnet in elastic.grid if space.price(elastic.slices(subnet)) <= space.budget]


def _scores_in_order(run: Path, plan: "Plan") -> tuple[np.ndarray, np.ndarray]:
    """Importance in the order in which the run put them: heads (layers, heads) and neurons (layers, neurons)."""
    importance = Importance.load(run / IMPORTANCE_FILE)
    heads, neurons = reordered(importance, plan.order, seed=plan.training.seed).order()
    return importance.heads.gather(1, heads).numpy(), importance.neurons.gather(1, neurons).numpy()


def seeds_of(run: Path, elastic: ElasticModel, space: Space) -> Iterator[Choice]:
    """What is tried first: rows of the grid made as large as the budget allows, even choices, those by importance.

    :param run: a finished run folder.
    :param elastic: its network.
    """
    for subnet in _uniform(elastic, space):
        if (choice := space.choice_of(elastic.slices(subnet))) is not None:
            yield choice
    yield from space.even_choices()
    yield from space.guided_choices(*_scores_in_order(run, Saved.of(run).plan))


def _is_alike(name: str) -> bool:
    """Whether a Subnet has as many heads and neurons in every layer."""
    layers = Subnet.parse(name).layers
    return layers is None or len({(part.n_heads, part.n_neurons) for part in layers}) == 1


def _chosen(found: dict[str, Score], uniform: list[str]) -> dict[str, str]:
    """The best Subnet of each kind, by how it was chosen.

    Of the grid there are two: a search that is guided by the distance must not have its own guide choose what it is
    compared with.
    """
    whole = {name: score for name, score in found.items() if score.metric is not None}
    kinds = {
        UNIFORM: (uniform, by_metric),
        NEAREST: (uniform, rank),
        ALIKE: ([name for name in whole if _is_alike(name)], rank),
        PER_LAYER: (list(whole), rank),
    }
    return {how: min(names, key=lambda name: by(whole[name])) for how, (names, by) in kinds.items() if names}


def rank(score: Score) -> tuple[float, float]:
    """What Subnets are chosen by, lower is better."""
    assert score.metric is not None, "only what was scored on all rows is ranked"
    return score.loss, -score.metric


def by_metric(score: Score) -> tuple[float, float]:
    """What the baseline is chosen by, lower is better: the main metric; the distance decides between equals."""
    loss, metric = rank(score)
    return metric, loss


def _measured(
    elastic: ElasticModel,
    prepared: Prepared,
    chosen: dict[str, str],
    found: dict[str, Score],
    *,
    budget: CostLimit,
    space: Space,
    seconds: float,
) -> SearchResult:
    """The chosen Subnets on the validation rows, which nothing has looked at before."""
    metric, labels = ROW_METRICS[prepared.task.primary_metric], labels_of(prepared.validation)
    logits: dict[str, np.ndarray] = {}
    full = encoder_flops(elastic.shape, elastic.slices(Subnet()))
    standings = []
    for how, name in chosen.items():
        slices = elastic.slices(Subnet.parse(name))
        logits[how] = predict(elastic.make_view(slices), prepared.validation)
        select = found[name].metric
        assert select is not None, "only what was scored on all rows is chosen"
        gain = None
        if UNIFORM in logits and how != UNIFORM:
            gain = paired_difference(metric, labels, logits[how], logits[UNIFORM], n=N_RESAMPLES)
        standings.append(
            Standing(
                how=how,
                subnet=name,
                cost=space.price(slices),
                share=encoder_flops(elastic.shape, slices) / full,
                loss=found[name].loss,
                select=100 * select,
                validation=100 * metric(labels, logits[how]),
                gain=None if gain is None else Difference(*(100 * value for value in gain)),
            )
        )
    return SearchResult(
        task=prepared.task.name,
        metric=prepared.task.primary_metric,
        budget=budget,
        limit=space.budget,
        standings=tuple(standings),
        n_tried=len(found),
        seconds=seconds,
        logits=logits,
    )
