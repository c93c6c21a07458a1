"""DynaBERT beside other ways to spend less: same teachers, same rows, same training FLOPs, paired by row and seed.

Of each method the point is chosen on the `select` rows: the best one whose mean cost is within a share of the full
network's FLOPs. What is reported is that point on the validation rows. Every method has its learning rate chosen from
the same list, on the `select` rows with the first seed; where the best of several is the lowest or highest, one more is
tried beyond it. Methods that fine-tune the encoder themselves may spend the teacher's training FLOPs as well, and learn
from all rows of the run, as the teacher did, where a study is limited to fewer.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from dynabert.baselines import METHODS, ElasticMethod, ExitMethod, Method, relatives, train_method
from dynabert.baselines import cascades as cascade
from dynabert.baselines.plain import TaskRows
from dynabert.errors import SettingError, one_of
from dynabert.hooks import Hooks
from dynabert.job import Prepared
from dynabert.statistics import (
    ROW_METRICS,
    resampled_difference,
)
from dynabert.studies.standings import (
    CASCADE,
    NO_POINT,
    OURS,
    OWN,
    Comparison,
    Standing,
    Stood,
    mean_standings,
    mean_time,
    over_tasks,
)
from dynabert.studies.study import Derived, Study, studies_of
from dynabert.studies.trials import Point, Trial
from dynabert.studies.tuning import N_RESAMPLES, Tuned, check_settings, n_trainings, tuned
from dynabert.subnet import Subnet, encoder_flops

CASCADE_SHARES = (0.75, 0.5, 0.375, 0.25, 0.1875)
"""Mean costs of the cascades that are looked for, as shares of the full network's FLOPs."""
SHARES = (0.5, 0.25)
RESULT = "compare.json"

ALL = (CASCADE, *METHODS)
"""What can stand beside DynaBERT's sizes."""


class _TaskComparison:
    """All trainings of a comparison on one task."""

    def __init__(
        self, study: Study, methods: Sequence[str], *, ours: str, rates: Sequence[float], n_seeds: int
    ) -> None:
        self.study, self.ours = study, ours
        self.methods = tuple(dict.fromkeys((OURS, ours, *methods)))
        self.rates = tuple(rates) or (study.recipe.lr,)
        self.seeds = study.seeds(n_seeds)
        self.full_flops = encoder_flops(study.elastic.shape, study.elastic.slices(Subnet()))
        self.tuned: dict[str, Tuned] = {}

    @property
    def n_trainings(self) -> int:
        """At most; methods that come of the same trainings share them, and each chooses a rate for itself."""
        families = Counter(OURS if method in OWN else min((method, *relatives(method))) for method in self.methods)
        return sum(n_trainings(self.rates, self.seeds, choosers=members) for members in families.values())

    def train(self) -> None:
        """Tune every method with the first seed, then train it with all."""
        for method in self.methods:
            trained = partial(self.trained, method)
            self.tuned[method] = tuned(trained, self.rates, self.seeds, score=self._selected)

    def trained(self, method: str, lr: float, seed: int) -> Trial:
        """One method at one rate and seed, at the training cost of the run."""
        study = self.study
        if method in OWN:
            plan = replace(study.plan, recipe=study.at_budget(study.recipe.at_lr(lr)))
            settings = (CASCADE, CASCADE_SHARES, cascade.RULE, cascade.VERSION)
            # Of a network that is trained in any case they are kept for who asks for them next.
            spare = CASCADE not in self.methods
            cascades = Derived(f"{CASCADE}-lr{lr:g}", settings, self._cascades, spare=spare)
            also = () if _obstacle(CASCADE, [study]) else (cascades,)
            return study.trained_and(f"{OURS}-lr{lr:g}", plan, seed=seed, also=also)[f"{method}-lr{lr:g}"]
        return self._kept(method, lr, seed, lambda: self._train(method, lr, seed))

    def _cascades(self, network: ElasticMethod, rows: Prepared) -> Method:
        budgets = [share * self.full_flops for share in CASCADE_SHARES]
        return cascade.best_cascades(network, rows.select, rows.task, budgets=budgets, name=CASCADE)

    def _kept(self, method: str, lr: float, seed: int, make: Callable[[], Method]) -> Trial:
        """The trial of another method, measured when it is made."""
        study, name = self.study, f"{method}-lr{lr:g}"
        kind = METHODS[method]
        rows = ["rows of the run"] if kind.from_encoder and study.is_limited else []
        settings = [method, self._budget(method), lr, study.plan.training.precision, seed, kind.version, *rows]
        return study.kept(f"{name}-{seed}", settings, lambda: study.trial(name, make(), seed))

    def _budget(self, method: str) -> float:
        return self.study.budget_flops + (self.study.teacher_flops if METHODS[method].from_encoder else 0.0)

    def _train(self, method: str, lr: float, seed: int) -> Method:
        """Another method; those of the comparison that come of the same training are kept as well."""
        study = self.study
        rows = study.rows(seed, of_run=METHODS[method].from_encoder)
        trained = train_method(
            method,
            study.network(seed),
            study.start(seed),
            train=rows.train,
            select=rows.select,
            task=rows.task,
            budget_flops=self._budget(method),
            training=replace(study.plan.training, seed=seed),
            lr=lr,
            masked=study.masked,
            hooks=study.hooks,
        )
        for other in set(relatives(method)) & set(self.methods):
            choose = partial(METHODS[other].choose, trained, TaskRows(rows.train, rows.select, rows.task))
            self._kept(other, lr, seed, choose)
        if isinstance(trained, ExitMethod):  # thresholds for the very costs that are compared
            return trained.within(rows.select, [share * self.full_flops for share in SHARES])
        return trained

    def point_at(self, trial: Trial, share: float) -> Point | None:
        """The best point on the `select` rows within a share of the full network's FLOPs, among equals the cheapest."""
        within = [point for point in trial.points if point.select_flops <= share * self.full_flops * (1 + 1e-9)]
        return max(within, key=lambda point: (point.select_metric, -point.select_flops), default=None)

    def _selected(self, trial: Trial) -> float:
        """By what a rate is chosen: the mean over the shares; where a method has no point so cheap, nothing."""
        points = [self.point_at(trial, share) for share in (1.0, *SHARES)]
        return float(np.mean([0.0 if point is None else point.select_metric for point in points]))

    def full(self) -> float:
        """Metric of the teachers, in hundredths."""
        metric = ROW_METRICS[self.study.task.primary_metric]
        answers = [self.study.teacher_logits(seed) for seed in self.seeds]
        return 100 * float(np.mean([metric(self.study.labels, logits) for logits in answers]))

    def standings(self, *, draw: int) -> list[Stood]:
        """Every method at every share."""
        return [self._stood(method, share, draw=draw) for share in SHARES for method in self.methods]

    def _stood(self, method: str, share: float, *, draw: int) -> Stood:
        found, ours = self.tuned[method], self.tuned[self.ours].trials
        runs = found.trials
        points, rivals = ([self.point_at(run, share) for run in side] for side in (runs, ours))
        chosen = [point for point in points if point is not None]
        standing = Standing(
            method=method,
            share=share,
            point=NO_POINT,
            metric=None,
            flops=None,
            difference=None,
            p_holm=None,
            time=None,
            lr=found.lr,
            n_steps=runs[0].n_steps,
            at_edge=found.at_edge,
        )
        if len(chosen) < len(points):
            return Stood(standing, None)
        metric, labels = ROW_METRICS[self.study.task.primary_metric], self.study.labels
        answers = [run.logits[point.name] for run, point in zip(runs, chosen, strict=True)]
        resampled = None
        if method != self.ours and all(rivals):
            own = [run.logits[point.name] for run, point in zip(ours, rivals, strict=True) if point is not None]
            resampled = resampled_difference(metric, labels, {"": own}, {"": answers}, n=N_RESAMPLES, seed=draw)
        measured = replace(
            standing,
            point=chosen[0].name,
            metric=100 * float(np.mean([metric(labels, logits) for logits in answers])),
            flops=float(np.mean([point.flops for point in chosen])) / self.full_flops,
            time=mean_time([point.time for point in chosen]),
        )
        return Stood(measured, resampled)

    def summary(self, standings: tuple[Standing, ...]) -> Comparison:
        """The comparison of this task alone."""
        task, flops = self.study.task, self.study.budget_flops
        first = {method: found.trials[0] for method, found in self.tuned.items()}
        sweeps = {method: trial.sweep for method, trial in first.items()}
        times = {method: {point.name: point.time for point in trial.points} for method, trial in first.items()}
        return Comparison(
            task=task.name,
            metric=task.primary_metric,
            full=self.full(),
            seeds=self.seeds,
            training_flops=flops,
            standings=standings,
            sweeps=sweeps,
            times=times,
            teacher_flops=self.study.teacher_flops,
            recipe=self.study.recipe.name,
            ours=self.ours,
            rates=self.rates,
            full_flops=self.full_flops,
        )


def compare(
    *runs: str | Path,
    methods: Sequence[str] = ALL,
    ours: str = OURS,
    n_seeds: int = 1,
    lrs: Sequence[float] = (),
    budget: float = 1.0,
    limit: int | None = None,
    recipe: str | None = None,
    device: str | None = None,
    hooks: Hooks | None = None,
) -> Comparison:
    """Train other methods beside a run, at its training cost. Goes on where it was interrupted.

    :param runs: a finished run folder, or several with rows of their own, whose mean counts then.
    :param methods: names in `ALL`.
    :param ours: what the others are compared with, a name in `OWN`.
    :param n_seeds: the run's own seed and the ones after it.
    :param lrs: learning rates, of which each method takes the one that is best on the `select` rows with the first
        seed; by default that of the recipe alone. Of a recipe whose stages have several it is the highest.
    :param budget: training FLOPs of each method, as a share of those of the run's recipe.
    :param limit: train on a random part of that many rows; methods that do without the teacher learn from all, as it
        did.
    :param recipe: name of the recipe that DynaBERT trains by, at the cost of the run's; by default the run's own.
    :param device: cpu or cuda; by default the GPU if there is one.
    :param hooks: reports of all trainings.
    :return: of each run also written to its ``studies/compare.json``.
    :raises SettingError: no method or an unknown one, an unknown recipe, a method asked for by name that cannot do one
        of the tasks, no runs or seeds, runs of the same rows, or of different recipes where none is named, or rates or
        a budget that are not above 0.
    """
    for what, name, names in (*(("method", method, ALL) for method in methods), ("ours", ours, OWN)):
        if name not in names:
            raise SettingError(one_of(what, name, names))
    if not methods:
        raise SettingError(f"no methods given; give one at least of {', '.join(ALL)}")
    check_settings(runs, n_seeds=n_seeds, budget=budget, lrs=lrs)
    studies = studies_of(runs, budget=budget, limit=limit, recipe=recipe, device=device, hooks=hooks)
    if obstacle := _obstacle(ours, studies):
        raise SettingError(f"{ours}: {obstacle}; compare with {OURS}")
    left_out = _left_out(methods, studies)
    methods = [method for method in methods if method not in left_out]
    tasks = [_TaskComparison(study, methods, ours=ours, rates=lrs, n_seeds=n_seeds) for study in studies]
    for task in tasks:
        task.study.at_budget(task.study.recipe)  # which refuses a budget that pays nothing
    (hooks or Hooks()).intended(sum(task.n_trainings for task in tasks), budget)
    stood, summaries = [], []
    for draw, task in enumerate(tasks):
        task.train()
        stood.append(task.standings(draw=draw))
        summaries.append(replace(task.summary(mean_standings([stood[-1]])), left_out=left_out))
        task.study.write(RESULT, summaries[-1].to_dict())
    return summaries[0] if len(runs) == 1 else over_tasks(summaries, mean_standings(stood))


def _left_out(methods: Sequence[str], studies: Sequence[Study]) -> dict[str, str]:
    """The methods that cannot do all tasks, and why; of the whole list they are left out, else they are refused.

    :raises SettingError: a method was asked for by name that cannot do one of the tasks.
    """
    obstacles = {method: found for method in methods if (found := _obstacle(method, studies))}
    if obstacles and set(methods) != set(ALL):
        method, obstacle = next(iter(obstacles.items()))
        raise SettingError(f"{method}: {obstacle}; leave out {', '.join(obstacles)}")
    return obstacles


def _obstacle(method: str, studies: Sequence[Study]) -> str | None:
    """Why a method cannot do one of the tasks."""
    exits_early = method in METHODS and METHODS[method].exits_early
    needs_mask = method in METHODS and METHODS[method].needs_mask
    for study in studies:
        if (exits_early or method == CASCADE) and study.task.is_regression:
            return f"early exit needs classes, and {study.task.name} is a regression"
        if exits_early and study.elastic.shape.n_layers < 2:
            return f"early exit needs two layers, and {study.run} has one"
        if method == CASCADE and not _has_pairs(study):
            return f"the grid of {study.run} has no size of {max(CASCADE_SHARES):.0%} of the FLOPs and a larger one"
        if needs_mask and (reason := study.no_masked_phase()):
            return reason
    return None


def _has_pairs(study: Study) -> bool:
    """Whether two sizes of the grid can be a cascade within the largest of its budgets."""
    elastic = study.elastic
    full = encoder_flops(elastic.shape, elastic.slices(Subnet()))
    costs = [encoder_flops(elastic.shape, elastic.slices(size)) for size in elastic.grid]
    return min(costs) < max(costs) and min(costs) <= max(CASCADE_SHARES) * full
