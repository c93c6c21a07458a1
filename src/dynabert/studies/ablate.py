"""What each ingredient is worth: one factor of a run changed at a time, at equal training FLOPs, paired with the run.

Every variant starts from the same teachers, has its learning rate chosen from the same list on the `select` rows, and
spends the same training FLOPs as the plan it is compared with (`base`); its stages are made longer or shorter for that.
Differences are of the validation rows, paired by row and seed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dynabert.errors import SettingError, one_of
from dynabert.files import write_json
from dynabert.hooks import Hooks
from dynabert.losses import LossWeights
from dynabert.plan import Plan
from dynabert.recipes import FINETUNE, SCHEDULES, Recipe, Schedule, Stage
from dynabert.run import load_result
from dynabert.statistics import ROW_METRICS, holm, mean_difference, p_value, resampled_difference
from dynabert.studies.trials import Study, Trial
from dynabert.subnet import DEPTH_RULES
from dynabert.sweep import plain_text

BASE = "base"
RESULT = "ablate.json"
N_RESAMPLES = 2000


@dataclass(frozen=True)
class Effect:
    """What changing one thing does, in hundredths of the metric: variant minus base, over the seeds.

    :param where: ``mean`` over the grid, or the name of one Subnet.
    :param low: end of the 95 % interval over rows and seeds; with fewer than five seeds it is too short.
    :param p_holm: two-sided p value, corrected for all effects of the study by Holm's method.
    :param metric: of the variant, mean over the seeds.
    :param lr: the learning rate chosen for the variant on the `select` rows.
    """

    factor: str
    variant: str
    where: str
    difference: float
    low: float
    high: float
    p_holm: float
    metric: float
    lr: float


@dataclass(frozen=True)
class Ablation:
    """All effects of a study, and what they have in common.

    :param base: metric of the plan that the variants are compared with, by where.
    """

    task: str
    metric: str
    base: dict[str, float]
    base_lr: float
    seeds: tuple[int, ...]
    training_flops: float
    effects: tuple[Effect, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the effects are called rows."""
        fields = asdict(self)
        return {**{name: value for name, value in fields.items() if name != "effects"}, "rows": fields["effects"]}

    def table(self) -> str:
        """The effects as lines of plain text."""
        from rich import box
        from rich.table import Table

        base = ", ".join(f"{where} {value:.2f}" for where, value in self.base.items())
        title = f"{self.task}: {self.metric} x 100, variant minus base; base: {base} (lr {self.base_lr:g})"
        caption = (
            f"{len(self.seeds)} seeds, {self.training_flops / 1e12:.3g} TFLOPs of training a row of 128 tokens each"
        )
        table = Table(title=title, caption=caption, box=box.SIMPLE)
        for name in ("factor", "variant", "where"):
            table.add_column(name, no_wrap=True)
        for name in ("metric", "difference", "95 %", "p (Holm)", "lr"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in self.effects:
            numbers = (f"{row.metric:.2f}", f"{row.difference:+.2f}", f"{row.low:+.2f} to {row.high:+.2f}")
            table.add_row(row.factor, row.variant, row.where, *numbers, f"{row.p_holm:.3f}", f"{row.lr:g}")
        return plain_text(table)


def _stages(recipe: Recipe, change: Callable[[Stage], Stage]) -> Recipe:
    return replace(recipe, stages=tuple(map(change, recipe.stages)))


def _rewiring(plan: Plan) -> dict[str, Plan]:
    ordered = {order: replace(plan, order=order) for order in ("importance", "random", "reversed", "as-is")}
    scored = {
        f"{scores} scores": replace(plan, order="importance", recipe=replace(plan.recipe, scores=scores))
        for scores in ("per-example", "total", "published")
    }
    return ordered | scored


def _distillation(plan: Plan) -> dict[str, Plan]:
    labels = LossWeights(logits=0, hidden=0, embeddings=0, labels=1)

    def weighted(change: Callable[[Stage], LossWeights]) -> Plan:
        return replace(plan, recipe=_stages(plan.recipe, lambda stage: replace(stage, weights=change(stage))))

    return {
        "labels alone": replace(
            plan, recipe=_stages(plan.recipe, lambda stage: replace(stage, weights=labels, teacher="none"))
        ),
        "logits alone": weighted(lambda stage: LossWeights(logits=1, hidden=0, embeddings=0)),
        "labels too": weighted(lambda stage: replace(stage.weights, labels=1.0)),
    }


def _assistant(plan: Plan) -> dict[str, Plan]:
    """A teacher assistant is what the `previous` stage gave: without it the original teaches throughout."""

    def taught(stage: Stage) -> Stage:
        return replace(stage, teacher="original") if stage.teacher == "previous" else stage

    original = _stages(plan.recipe, taught)
    one = replace(original, stages=tuple(stage for stage in original.stages if stage.subnets == "grid"))
    return {
        "original teacher": replace(plan, recipe=original),
        "no width stage": replace(plan, recipe=one),
    }


def _teacher_width(plan: Plan) -> dict[str, Plan]:
    def changed(width: Any) -> Plan:  # noqa: ANN401 (one of two literals)
        return replace(
            plan,
            recipe=_stages(
                plan.recipe, lambda stage: replace(stage, teacher_width=width) if stage.subnets == "grid" else stage
            ),
        )

    return {"matching": changed("matching"), "full": changed("full")}


def _schedule(plan: Plan) -> dict[str, Plan]:
    def changed(schedule: Schedule) -> Plan:
        return replace(
            plan,
            recipe=_stages(
                plan.recipe, lambda stage: replace(stage, schedule=schedule) if stage.subnets == "grid" else stage
            ),
        )

    return {kind: changed(Schedule(kind)) for kind in SCHEDULES}


def _finetune(plan: Plan) -> dict[str, Plan]:
    last = replace(FINETUNE, epochs=plan.recipe.stages[-1].epochs, lr=plan.recipe.stages[-1].lr)
    stages = tuple(stage for stage in plan.recipe.stages if stage.name != FINETUNE.name)
    return {
        "with": replace(plan, recipe=replace(plan.recipe, stages=(*stages, last))),
        "without": replace(plan, recipe=replace(plan.recipe, stages=stages)),
    }


def _depth_rule(plan: Plan) -> dict[str, Plan]:
    return {rule: replace(plan, depth_rule=rule) for rule in DEPTH_RULES}  # type: ignore[arg-type]


FACTORS: Mapping[str, Callable[[Plan], dict[str, Plan]]] = {
    "rewiring": _rewiring,
    "distillation": _distillation,
    "assistant": _assistant,
    "teacher-width": _teacher_width,
    "schedule": _schedule,
    "finetune": _finetune,
    "depth-rule": _depth_rule,
}
"""Each factor's variants of a plan; those that are the plan itself are left out. `learning-rate` is a factor too: its
variants are the rates of the list."""

LEARNING_RATE = "learning-rate"
ALL_FACTORS = (*FACTORS, LEARNING_RATE)


def variants_of(plan: Plan, factors: Sequence[str]) -> dict[tuple[str, str], Plan]:
    """The plans that differ from a plan in one factor, by factor and variant.

    :raises SettingError: an unknown factor.
    """
    unknown = [factor for factor in factors if factor not in ALL_FACTORS]
    if unknown:
        raise SettingError(one_of("factor", unknown[0], ALL_FACTORS))
    chosen = {
        (factor, variant): changed
        for factor in factors
        if factor in FACTORS
        for variant, changed in FACTORS[factor](plan).items()
    }
    return {key: changed for key, changed in chosen.items() if changed != plan and changed.recipe.stages}


def ablate(
    run: str | Path,
    *,
    factors: Sequence[str] = ALL_FACTORS,
    n_seeds: int = 3,
    lrs: Sequence[float] = (),
    budget: float = 1.0,
    limit: int | None = None,
    hooks: Hooks | None = None,
) -> Ablation:
    """Change one factor of a run at a time, and measure what that does. Goes on where it was interrupted.

    :param run: a finished run folder; results go to its folder ``studies``.
    :param factors: names in `ALL_FACTORS`.
    :param n_seeds: the run's own seed and the ones after it.
    :param lrs: learning rates, of which each variant takes the one that is best on the `select` rows with the first
        seed; by default a third of the run's, the run's, and three times it.
    :param budget: training FLOPs of each training, as a share of those of the run's recipe.
    :param limit: train on a random part of that many rows.
    :param hooks: reports of all trainings.
    :return: also written to ``studies/ablate.json``.
    :raises SettingError: an unknown factor, no seeds, or rates or a budget that are not above 0.
    """
    study = Study(Path(run), budget=budget, limit=limit, hooks=hooks)
    plan = study.plan
    rates = tuple(lrs) or tuple(plan.recipe.stages[-1].lr * factor for factor in (1 / 3, 1, 3))
    if n_seeds < 1 or not budget > 0 or not all(rate > 0 for rate in rates):
        raise SettingError(f"seeds {n_seeds}, budget {budget} and learning rates {rates} must be above 0")
    plans = {(BASE, BASE): plan} | variants_of(plan, factors)
    seeds = tuple(range(plan.training.seed, plan.training.seed + n_seeds))
    elastic = load_result(run)

    def trained(key: tuple[str, str], lr: float, seed: int) -> Trial:
        variant = plans[key]
        recipe = study.at_budget(variant.recipe.adjusted(lr=lr), elastic)
        name = f"{key[0]}-{key[1]}-lr{lr:g}" if key[0] != BASE else f"{BASE}-lr{lr:g}"
        return study.trained(name, replace(variant, recipe=recipe), seed=seed)

    trials: dict[tuple[str, str], list[Trial]] = {}
    best: dict[tuple[str, str], float] = {}
    for key in plans:
        best[key] = max(rates, key=lambda lr: trained(key, lr, seeds[0]).select_score)
        trials[key] = [trained(key, best[key], seed) for seed in seeds]
    if LEARNING_RATE in factors:
        for lr in rates:
            if lr != best[BASE, BASE]:
                key = (LEARNING_RATE, f"{lr:g}")
                best[key] = lr
                trials[key] = [trained((BASE, BASE), lr, seed) for seed in seeds]
    result = _compared(study, trials, best, seeds, study.budget_flops(elastic))
    write_json(study.folder / RESULT, result.to_dict())
    return result


def _compared(
    study: Study,
    trials: Mapping[tuple[str, str], Sequence[Trial]],
    best: Mapping[tuple[str, str], float],
    seeds: tuple[int, ...],
    training_flops: float,
) -> Ablation:
    """Every variant against the base, at the mean over the grid and at its smallest Subnet."""
    labels, metric_name = study.labels, study.task.primary_metric
    metric, base = ROW_METRICS[metric_name], trials[BASE, BASE]
    places = {"mean": list(base[0].logits), study.plan.grid.smallest.name: [study.plan.grid.smallest.name]}

    def metric_at(runs: Sequence[Trial], names: Sequence[str]) -> float:
        return 100 * float(np.mean([metric(labels, run.logits[name]) for run in runs for name in names]))

    rows, p_values = [], []
    for (factor, variant), runs in trials.items():
        if factor == BASE:
            continue
        for where, names in places.items():
            sides = [{name: [run.logits[name] for run in side] for name in names} for side in (runs, base)]
            compared = resampled_difference(metric, labels, *sides, n=N_RESAMPLES)
            difference = mean_difference([compared])
            p_values.append(p_value(compared.values))
            rows.append(
                Effect(
                    factor=factor,
                    variant=variant,
                    where=where,
                    difference=100 * difference.mean,
                    low=100 * difference.low,
                    high=100 * difference.high,
                    p_holm=1.0,
                    metric=metric_at(runs, names),
                    lr=best[factor, variant],
                )
            )
    effects = tuple(replace(row, p_holm=p) for row, p in zip(rows, holm(p_values), strict=True))
    at_base = {where: metric_at(base, names) for where, names in places.items()}
    lr = best[BASE, BASE]
    return Ablation(study.task.name, metric_name, at_base, lr, seeds, training_flops, effects)
