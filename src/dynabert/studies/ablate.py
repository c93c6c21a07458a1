"""What each ingredient is worth: one factor of a run changed at a time, at equal training FLOPs, paired with the run.

Every variant starts from the same teachers and has its learning rate chosen from the same list on the `select` rows;
where the best of several is the lowest or highest, one more is tried beyond it. Each spends the same training FLOPs as
the plan it is compared with (`base`); its stages are made longer or shorter for that.
Differences are of the validation rows, paired by row and seed.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from dynabert.errors import NonFiniteError, SettingError
from dynabert.hooks import Hooks
from dynabert.plan import Plan
from dynabert.statistics import ROW_METRICS, Resampled, averaged, holm, mean_difference, p_value, resampled_difference
from dynabert.studies.factors import ALL_FACTORS, LEARNING_RATE, RECIPE, parsed, variants_of
from dynabert.studies.study import Study, studies_of
from dynabert.studies.trials import Trial
from dynabert.studies.tuning import N_RESAMPLES, check_settings, counted, covering, n_trainings, rate_text, tuned
from dynabert.sweep import plain_text

BASE = "base"
MEAN = "mean"
RESULT = "ablate.json"

log = logging.getLogger("dynabert")


@dataclass(frozen=True)
class Effect:
    """What changing one thing does, in hundredths of the metric, over the seeds: variant minus what it is against.

    :param where: ``mean`` over the grid, or the name of one Subnet.
    :param low: end of the 95 % interval, see `dynabert.studies.tuning.covering`.
    :param p_holm: two-sided p value, corrected for all effects of the study by Holm's method.
    :param metric: of the variant, mean over the seeds.
    :param lr: the learning rate chosen for the variant on the `select` rows; None where tasks differ in it.
    :param against: the base, or another variant of the factor.
    :param at_edge: that rate is the lowest or highest that was tried, on one of the tasks at least.
    """

    factor: str
    variant: str
    where: str
    difference: float
    low: float
    high: float
    p_holm: float
    metric: float
    lr: float | None
    against: str = BASE
    at_edge: bool = False


@dataclass(frozen=True)
class Ablation:
    """All effects of a study, and what they have in common.

    :param base: metric of the plan that the variants are compared with, by where.
    :param recipe: of that plan.
    :param base_at_edge: its rate is the lowest or highest that was tried, on one of the tasks at least.
    """

    task: str
    metric: str
    base: dict[str, float]
    base_lr: float | None
    seeds: tuple[int, ...]
    training_flops: float
    effects: tuple[Effect, ...]
    recipe: str = ""
    base_at_edge: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the effects are called rows."""
        fields = asdict(self)
        return {**{name: value for name, value in fields.items() if name != "effects"}, "rows": fields["effects"]}

    def table(self) -> str:
        """The effects as lines of plain text."""
        from rich import box
        from rich.table import Table

        base = ", ".join(f"{where} {value:.2f}" for where, value in self.base.items())
        rate = rate_text(self.base_lr, at_edge=self.base_at_edge)
        title = f"{self.task}: {self.metric} x 100; base: {self.recipe} recipe, {base} (lr {rate})"
        caption = f"{counted(self.seeds)}, {self.training_flops / 1e12:.3g} TFLOPs of training each; "
        caption += f"95 %: {covering(self.seeds)}"
        if self.base_at_edge or any(row.at_edge for row in self.effects):
            caption += "; * the lowest or highest rate that was tried"
        table = Table(title=title, caption=caption, box=box.SIMPLE)
        for name in ("factor", "variant", "minus", "where"):
            table.add_column(name, no_wrap=True)
        for name in ("metric", "difference", "95 %", "p (Holm)", "lr"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in self.effects:
            numbers = (f"{row.metric:.2f}", f"{row.difference:+.2f}", f"{row.low:+.2f} to {row.high:+.2f}")
            rate = rate_text(row.lr, at_edge=row.at_edge)
            table.add_row(row.factor, row.variant, row.against, row.where, *numbers, f"{row.p_holm:.3f}", rate)
        return plain_text(table)


Key = tuple[str, str]
"""Factor and variant."""

Pair = tuple[Key, str]
"""Factor and variant, and what it is compared with: the name of a variant, or the base."""

PAPER: Key = (RECIPE, "paper")


@dataclass(frozen=True)
class _Compared:
    """One variant against another or the base at one place, on one task.

    :param same: it is the base itself: the learning rate that the base has.
    """

    pair: Pair
    where: str
    resampled: Resampled
    metric: float
    lr: float
    at_edge: bool
    same: bool


class _TaskStudy:
    """All trainings of a study on one task."""

    def __init__(self, study: Study, factors: Sequence[str], *, rates: Sequence[float], n_seeds: int) -> None:
        self.study, self.factors = study, factors
        base = replace(study.plan, recipe=study.recipe)
        variants = variants_of(base, factors, regression=study.task.is_regression)
        self.plans: dict[Key, Plan] = {(BASE, BASE): base} | variants
        self.rates = tuple(rates) or tuple(study.recipe.lr * factor for factor in (1 / 3, 1, 3))
        known = {factor for factor, _ in variants} | ({LEARNING_RATE} if len(set(self.rates)) > 1 else set())
        if none := [factor for factor in factors if parsed(factor)[0] not in known]:
            message = f"nothing to vary in the recipe {study.recipe.name} by {', '.join(none)}"
            if known.isdisjoint(parsed(factor)[0] for factor in factors):
                other = "two rates at least: --lrs" if none == [LEARNING_RATE] else "another one: --recipe two-stage"
                raise SettingError(f"{message}; there may be with {other}")
            log.warning("%s", message)
        self.seeds = study.seeds(n_seeds)
        self.trials: dict[Key, list[Trial]] = {}
        self.lrs: dict[Key, float] = {}
        self.at_edge: dict[Key, bool] = {}

    @property
    def n_trainings(self) -> int:
        """At most."""
        by_rate = len(self.rates) * (len(self.seeds) - 1) if LEARNING_RATE in self.factors else 0
        return len(self.plans) * n_trainings(self.rates, self.seeds) + by_rate

    def train(self) -> None:
        """Tune every variant with the first seed, then train it with all."""
        for key in self.plans:
            trained = partial(self.trained, key)
            score = attrgetter("select_score")
            found = tuned(trained, self.rates, self.seeds, score=score)
            self.lrs[key], self.trials[key] = found.lr, found.trials
            self.at_edge[key] = found.at_edge
        for lr in self.rates if LEARNING_RATE in self.factors else ():
            self._train_at(lr)

    def _train_at(self, lr: float) -> None:
        """The base at a rate that is a variant itself: on some tasks the one that the base has, so that all have it."""
        try:
            trials = [self.trained((BASE, BASE), lr, seed) for seed in self.seeds]
        except NonFiniteError as error:
            log.warning("learning rate %g is left out: %s", lr, error)
            return
        key = (LEARNING_RATE, f"{lr:g}")
        self.lrs[key], self.trials[key] = lr, trials

    def trained(self, key: Key, lr: float, seed: int) -> Trial:
        """One variant at one rate and seed, at the cost of the base."""
        variant = self.plans[key]
        recipe = self.study.at_budget(variant.recipe.at_lr(lr))
        name = BASE if key[0] == BASE else f"{key[0]}-{key[1]}"
        return self.study.trained(f"{name}-lr{lr:g}", replace(variant, recipe=recipe), seed=seed)

    @property
    def places(self) -> dict[str, list[str]]:
        """What is compared: names of Subnets whose mean counts; of a grid of one size that size."""
        grid = self.study.plan.grid
        smallest = {grid.smallest.name: [grid.smallest.name]}
        return smallest if len(grid) == 1 else {MEAN: [subnet.name for subnet in grid], **smallest}

    def metric(self, key: Key, where: str) -> float:
        """In hundredths, the mean over Subnets and seeds."""
        labels, metric = self.study.labels, ROW_METRICS[self.study.task.primary_metric]
        values = [metric(labels, run.logits[name]) for run in self.trials[key] for name in self.places[where]]
        return 100 * float(np.mean(values))

    def compared(self, *, draw: int) -> list[_Compared]:
        """Every variant against the base, resampled with the seed `draw`."""
        labels, metric = self.study.labels, ROW_METRICS[self.study.task.primary_metric]
        rows = []
        for key, other in self._pairs():
            for where, names in self.places.items():
                sides = [
                    {name: [run.logits[name] for run in self.trials[side]] for name in names} for side in (key, other)
                ]
                found = resampled_difference(metric, labels, *sides, n=N_RESAMPLES, seed=draw)
                edge = self.at_edge.get(key, False)  # a rate that is a variant itself was not chosen
                same = key[0] == LEARNING_RATE and self.lrs[key] == self.lrs[other]
                metric_there = self.metric(key, where)
                rows.append(_Compared((key, other[1]), where, found, metric_there, self.lrs[key], edge, same))
        return rows

    def _pairs(self) -> Iterator[tuple[Key, Key]]:
        """Every variant, and what it is compared with: the base, and recipes with `paper` as well."""
        for key in self.trials:
            if key != (BASE, BASE):
                yield key, (BASE, BASE)
            if key[0] == RECIPE and key != PAPER and PAPER in self.trials:
                yield key, PAPER

    def summary(self, effects: tuple[Effect, ...]) -> Ablation:
        """The study of this task alone."""
        return Ablation(
            task=self.study.task.name,
            metric=self.study.task.primary_metric,
            base={where: self.metric((BASE, BASE), where) for where in self.places},
            base_lr=self.lrs[BASE, BASE],
            seeds=self.seeds,
            training_flops=self.study.budget_flops,
            effects=effects,
            recipe=self.study.recipe.name,
            base_at_edge=self.at_edge[BASE, BASE],
        )


def ablate(
    *runs: str | Path,
    factors: Sequence[str] = ALL_FACTORS,
    n_seeds: int = 3,
    lrs: Sequence[float] = (),
    budget: float = 1.0,
    limit: int | None = None,
    recipe: str | None = None,
    device: str | None = None,
    hooks: Hooks | None = None,
) -> Ablation:
    """Change one factor of a run at a time, and measure what that does. Goes on where it was interrupted.

    :param runs: a finished run folder, or several with rows of their own, whose mean counts then.
    :param factors: names in `ALL_FACTORS`, or ``factor=variant`` for one variant alone.
    :param n_seeds: the run's own seed and the ones after it.
    :param lrs: learning rates, of which each variant takes the one that is best on the `select` rows with the first
        seed; by default a third of the recipe's, the recipe's, and three times it. Where that is an end of several, one
        more is tried, a third or three times of it. Of a recipe whose stages have several it is the highest.
    :param budget: training FLOPs of each training, as a share of those of the run's recipe.
    :param limit: train on a random part of that many rows.
    :param recipe: name of the recipe whose factors are changed, at the cost of the run's; by default the run's own.
    :param device: cpu or cuda; by default the GPU if there is one.
    :param hooks: reports of all trainings.
    :return: of each run also written to its ``studies/ablate.json``.
    :raises SettingError: no factor or an unknown one, an unknown recipe, factors that have no variant in it, no runs or
        seeds, runs of the same rows, or of different recipes where none is named, or rates or a
        budget that are not above 0.
    """
    if not factors:
        raise SettingError(f"no factors given; give one at least of {', '.join(ALL_FACTORS)}")
    check_settings(runs, n_seeds=n_seeds, budget=budget, lrs=lrs)
    made = studies_of(runs, budget=budget, limit=limit, recipe=recipe, device=device, hooks=hooks)
    studies = [_TaskStudy(study, factors, rates=lrs, n_seeds=n_seeds) for study in made]
    for study in studies:
        study.study.at_budget(study.study.recipe)  # which refuses a budget that pays nothing
    (hooks or Hooks()).intended(sum(study.n_trainings for study in studies), budget)
    compared, summaries = [], []
    for draw, study in enumerate(studies):
        study.train()
        compared.append(study.compared(draw=draw))
        summaries.append(study.summary(_effects([compared[-1]])))
        study.study.write(RESULT, summaries[-1].to_dict())
    return summaries[0] if len(runs) == 1 else _over_tasks(summaries, _effects(compared))


def _effects(tasks: Sequence[Sequence[_Compared]]) -> tuple[Effect, ...]:
    """Effects of one task, or means over several; p values corrected for their number."""
    by_place = [{(row.pair, row.where): row for row in rows} for rows in tasks]
    effects, p_values = [], []
    for place in dict.fromkeys(place for rows in by_place for place in rows):
        rows = [by_task[place] for by_task in by_place if place in by_task]
        ((factor, variant), against), where = place
        if len(rows) < len(tasks):
            log.warning("%s=%s (%s) is in %d of %d tasks and not told", factor, variant, where, len(rows), len(tasks))
            continue
        if all(row.same for row in rows):
            continue  # nothing was changed
        mean = averaged([row.resampled for row in rows])
        difference = mean_difference([mean])
        p_values.append(p_value(mean.values))
        effects.append(
            Effect(
                factor=factor,
                variant=variant,
                where=where,
                difference=100 * difference.mean,
                low=100 * difference.low,
                high=100 * difference.high,
                p_holm=1.0,
                metric=float(np.mean([row.metric for row in rows])),
                lr=rows[0].lr if len({row.lr for row in rows}) == 1 else None,
                against=against,
                at_edge=any(row.at_edge for row in rows),
            )
        )
    return tuple(replace(effect, p_holm=p) for effect, p in zip(effects, holm(p_values), strict=True))


def _over_tasks(summaries: Sequence[Ablation], effects: tuple[Effect, ...]) -> Ablation:
    places = [where for where in summaries[0].base if all(where in summary.base for summary in summaries)]
    lrs = {summary.base_lr for summary in summaries}
    return Ablation(
        task=", ".join(summary.task for summary in summaries),
        metric=", ".join(dict.fromkeys(summary.metric for summary in summaries)),
        base={where: float(np.mean([summary.base[where] for summary in summaries])) for where in places},
        base_lr=lrs.pop() if len(lrs) == 1 else None,
        seeds=summaries[0].seeds,
        training_flops=float(np.mean([summary.training_flops for summary in summaries])),
        effects=effects,
        recipe=summaries[0].recipe,
        base_at_edge=any(summary.base_at_edge for summary in summaries),
    )
