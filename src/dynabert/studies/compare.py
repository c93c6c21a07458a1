"""DynaBERT beside other ways to spend less: same teachers, same rows, same training FLOPs, paired by row and seed.

Of each method the point is chosen on the `select` rows: the best one whose mean cost is within a share of the full
network's FLOPs. What is reported is that point on the validation rows. Every method has its learning rate chosen from
the same list, on the `select` rows with the first seed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dynabert.baselines import METHODS, ExitMethod, train_method
from dynabert.errors import SettingError, one_of
from dynabert.hooks import Hooks
from dynabert.statistics import (
    ROW_METRICS,
    Difference,
    Resampled,
    averaged,
    holm,
    mean_difference,
    p_value,
    resampled_difference,
)
from dynabert.studies.trials import N_RESAMPLES, Point, Study, Trial, check_settings, tuned
from dynabert.subnet import Subnet, encoder_flops
from dynabert.sweep import Sweep, plain_text

OURS = "dynabert"
SHARES = (0.5, 0.25)
RESULT = "compare.json"


@dataclass(frozen=True)
class Standing:
    """A method at one cost, beside DynaBERT; metrics in hundredths, means over the seeds.

    :param share: of the full network's FLOPs, at most.
    :param point: what was chosen with the first seed.
    :param flops: of an input at that point, as a share of the full network's, on the validation rows.
    :param difference: DynaBERT minus the method, with its 95 % interval over rows and seeds; with fewer than five seeds
        it is too short. None for DynaBERT itself, and where a method has no point as cheap as that.
    :param p_holm: two-sided p value, corrected for all differences of the comparison.
    :param time: of an input, as a share of the full network's, one by one and in batches of 32.
    """

    method: str
    share: float
    point: str
    metric: float
    flops: float
    difference: Difference | None
    p_holm: float | None
    time: tuple[float, float]
    lr: float | None
    n_steps: int


@dataclass(frozen=True)
class Comparison:
    """All methods of a comparison, and what they have in common.

    :param full: metric of the teachers, in hundredths, mean over the seeds.
    :param sweeps: of every method with the first seed, by name.
    """

    task: str
    metric: str
    full: float
    seeds: tuple[int, ...]
    training_flops: float
    standings: tuple[Standing, ...]
    sweeps: Mapping[str, Sweep]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        fields = {name: value for name, value in self.__dict__.items() if name not in ("standings", "sweeps")}
        rows = [asdict(standing) for standing in self.standings]
        return {**fields, "rows": rows, "sweeps": {name: sweep.to_dict() for name, sweep in self.sweeps.items()}}

    def table(self) -> str:
        """The standings as lines of plain text."""
        from rich import box
        from rich.table import Table

        title = f"{self.task}: {self.metric} x 100 at a share of the FLOPs; full network {self.full:.2f}"
        caption = f"{len(self.seeds)} seeds, {self.training_flops / 1e12:.3g} TFLOPs of training each"
        table = Table(title=title, caption=caption, box=box.SIMPLE)
        for name in ("at most", "method", "point"):
            table.add_column(name, no_wrap=True)
        for name in ("metric", "FLOPs", "ours - its, 95 %", "p (Holm)", "time x1", "x32", "steps"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in self.standings:
            better = "" if row.difference is None else "{:+.2f} [{:+.2f}, {:+.2f}]".format(*row.difference)
            p = "" if row.p_holm is None else f"{row.p_holm:.3f}"
            times = (f"{row.time[0]:.0%}", f"{row.time[1]:.0%}")
            cells = (f"{row.metric:.2f}", f"{row.flops:.0%}", better, p, *times, str(row.n_steps))
            table.add_row(f"{row.share:.0%}", row.method, _brief(row.point), *cells)
        return plain_text(table)


@dataclass(frozen=True)
class _Stood:
    """A standing, and its difference resampled; None for DynaBERT itself."""

    standing: Standing
    resampled: Resampled | None


def _brief(point: str) -> str:
    """The name of a point; of one that names each of its layers, their number."""
    return f"{len(point.split('_'))} layers" if point.startswith("l") else point


class _TaskComparison:
    """All trainings of a comparison on one task."""

    def __init__(self, study: Study, methods: Sequence[str], *, rates: Sequence[float], n_seeds: int) -> None:
        self.study, self.methods = study, (OURS, *methods)
        self.rates = tuple(rates) or (study.plan.recipe.stages[-1].lr,)
        self.seeds = study.seeds(n_seeds)
        self.full_flops = encoder_flops(study.elastic.shape, study.elastic.slices(Subnet()))
        self.trials: dict[str, list[Trial]] = {}
        self.lrs: dict[str, float] = {}

    def train(self) -> None:
        """Tune every method with the first seed, then train it with all."""
        for method in self.methods:
            trained = partial(self.trained, method)
            self.lrs[method], self.trials[method] = tuned(trained, self.rates, self.seeds, score=self._selected)

    def trained(self, method: str, lr: float, seed: int) -> Trial:
        """One method at one rate and seed, at the training cost of the run."""
        study, budget = self.study, self.study.budget_flops
        name = f"{method}-lr{lr:g}"
        if method == OURS:
            recipe = study.at_budget(study.plan.recipe.adjusted(lr=lr))
            return study.trained(name, replace(study.plan, recipe=recipe), seed=seed)

        def make() -> Trial:
            rows, training = study.rows(seed), replace(study.plan.training, seed=seed)
            trained = train_method(
                method,
                study.network(seed),
                study.start(seed),
                train=rows.train,
                select=rows.select,
                task=rows.task,
                budget_flops=budget,
                training=training,
                lr=lr,
                hooks=study.hooks,
            )
            if isinstance(trained, ExitMethod):  # thresholds for the very costs that are compared
                trained = trained.within(rows.select, [share * self.full_flops for share in SHARES])
            return study.trial(name, trained, seed)

        return study.kept(f"{name}-{seed}", (method, budget, lr, study.plan.training.precision, seed), make)

    def point_at(self, trial: Trial, share: float) -> Point | None:
        """The best point on the `select` rows within a share of the full network's FLOPs."""
        within = [point for point in trial.points if point.select_flops <= share * self.full_flops * (1 + 1e-9)]
        return max(within, key=lambda point: point.select_metric, default=None)

    def _selected(self, trial: Trial) -> float:
        points = [self.point_at(trial, share) for share in (1.0, *SHARES)]
        return float(np.mean([point.select_metric for point in points if point is not None]))

    def full(self) -> float:
        """Metric of the teachers, in hundredths."""
        metric = ROW_METRICS[self.study.task.primary_metric]
        answers = [self.study.teacher_logits(seed) for seed in self.seeds]
        return 100 * float(np.mean([metric(self.study.labels, logits) for logits in answers]))

    def standings(self, *, draw: int) -> list[_Stood]:
        """Every method at every share."""
        return [
            stood
            for share in SHARES
            for method in self.methods
            if (stood := self._stood(method, share, draw=draw)) is not None
        ]

    def _stood(self, method: str, share: float, *, draw: int) -> _Stood | None:
        runs, ours = self.trials[method], self.trials[OURS]
        points, rivals = ([self.point_at(run, share) for run in side] for side in (runs, ours))
        chosen = [point for point in points if point is not None]
        if len(chosen) < len(points):
            return None
        metric, labels = ROW_METRICS[self.study.task.primary_metric], self.study.labels
        answers = [run.logits[point.name] for run, point in zip(runs, chosen, strict=True)]
        resampled = None
        if method != OURS and all(rivals):
            own = [run.logits[point.name] for run, point in zip(ours, rivals, strict=True) if point is not None]
            resampled = resampled_difference(metric, labels, {"": own}, {"": answers}, n=N_RESAMPLES, seed=draw)
        times = [point.time for point in chosen]
        standing = Standing(
            method=method,
            share=share,
            point=chosen[0].name,
            metric=100 * float(np.mean([metric(labels, logits) for logits in answers])),
            flops=float(np.mean([point.flops for point in chosen])) / self.full_flops,
            difference=None,
            p_holm=None,
            time=(float(np.mean([time[0] for time in times])), float(np.mean([time[1] for time in times]))),
            lr=self.lrs[method],
            n_steps=runs[0].n_steps,
        )
        return _Stood(standing, resampled)

    def summary(self, standings: tuple[Standing, ...]) -> Comparison:
        """The comparison of this task alone."""
        task, flops = self.study.task, self.study.budget_flops
        sweeps = {method: runs[0].sweep for method, runs in self.trials.items()}
        return Comparison(task.name, task.primary_metric, self.full(), self.seeds, flops, standings, sweeps)


def compare(
    *runs: str | Path,
    methods: Sequence[str] = tuple(METHODS),
    n_seeds: int = 1,
    lrs: Sequence[float] = (),
    budget: float = 1.0,
    limit: int | None = None,
    hooks: Hooks | None = None,
) -> Comparison:
    """Train other methods beside a run, at its training cost. Goes on where it was interrupted.

    :param runs: a finished run folder, or several of different tasks, whose mean counts then.
    :param methods: names in `dynabert.baselines.METHODS`.
    :param n_seeds: the run's own seed and the ones after it.
    :param lrs: learning rates, of which each method takes the one that is best on the `select` rows with the first
        seed; by default the run's alone.
    :param budget: training FLOPs of each method, as a share of those of the run's recipe.
    :param limit: train on a random part of that many rows.
    :param hooks: reports of all trainings.
    :return: of each run also written to its ``studies/compare.json``.
    :raises SettingError: an unknown method, no runs or seeds, or rates or a budget that are not above 0.
    """
    unknown = [method for method in methods if method not in METHODS]
    if unknown:
        raise SettingError(one_of("method", unknown[0], METHODS))
    check_settings(runs, n_seeds=n_seeds, budget=budget, lrs=lrs)
    tasks = [
        _TaskComparison(Study(Path(run), budget=budget, limit=limit, hooks=hooks), methods, rates=lrs, n_seeds=n_seeds)
        for run in runs
    ]
    stood, summaries = [], []
    for draw, task in enumerate(tasks):
        task.train()
        stood.append(task.standings(draw=draw))
        summaries.append(task.summary(_standings([stood[-1]])))
        task.study.write(RESULT, summaries[-1].to_dict())
    return summaries[0] if len(runs) == 1 else _over_tasks(summaries, _standings(stood))


def _standings(tasks: Sequence[Sequence[_Stood]]) -> tuple[Standing, ...]:
    """Standings on one task, or means over several; p values corrected for their number."""
    by_place = [{(row.standing.method, row.standing.share): row for row in rows} for rows in tasks]
    merged: list[Standing] = []
    p_values: dict[int, float] = {}
    for place in by_place[0]:
        if not all(place in rows for rows in by_place):
            continue
        rows = [rows[place] for rows in by_place]
        standing = _mean([row.standing for row in rows])
        resampled = [row.resampled for row in rows if row.resampled is not None]
        if len(resampled) == len(rows):
            mean = averaged(resampled)
            difference = mean_difference([mean])
            standing = replace(standing, difference=Difference(*(100 * value for value in difference)))
            p_values[len(merged)] = p_value(mean.values)
        merged.append(standing)
    for number, p in zip(p_values, holm(list(p_values.values())), strict=True):
        merged[number] = replace(merged[number], p_holm=p)
    return tuple(merged)


def _mean(rows: Sequence[Standing]) -> Standing:
    """One row over several tasks; what differs among them and has no mean is left out."""
    first = rows[0]
    if len(rows) == 1:
        return first
    times = [row.time for row in rows]
    return replace(
        first,
        point=first.point if len({row.point for row in rows}) == 1 else "by task",
        metric=float(np.mean([row.metric for row in rows])),
        flops=float(np.mean([row.flops for row in rows])),
        time=(float(np.mean([time[0] for time in times])), float(np.mean([time[1] for time in times]))),
        lr=first.lr if len({row.lr for row in rows}) == 1 else None,
        n_steps=round(np.mean([row.n_steps for row in rows])),
    )


def _over_tasks(summaries: Sequence[Comparison], standings: tuple[Standing, ...]) -> Comparison:
    return Comparison(
        task=", ".join(summary.task for summary in summaries),
        metric=", ".join(dict.fromkeys(summary.metric for summary in summaries)),
        full=float(np.mean([summary.full for summary in summaries])),
        seeds=summaries[0].seeds,
        training_flops=float(np.mean([summary.training_flops for summary in summaries])),
        standings=standings,
        sweeps={},
    )
