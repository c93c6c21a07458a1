"""Plans that differ from a plan in one thing: what an ablation changes, as data."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from dynabert.errors import SettingError, one_of
from dynabert.losses import LossWeights
from dynabert.plan import Plan
from dynabert.recipes import FINETUNE, RECIPES, SCHEDULES, Recipe, Schedule, Stage
from dynabert.subnet import DEPTH_RULES


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
        def taught(stage: Stage) -> Stage:
            return stage if stage.teacher == "none" else replace(stage, weights=change(stage))

        return replace(plan, recipe=_stages(plan.recipe, taught))

    return {
        "labels alone": replace(
            plan, recipe=_stages(plan.recipe, lambda stage: replace(stage, weights=labels, teacher="none"))
        ),
        "logits alone": weighted(lambda stage: LossWeights(logits=1, hidden=0, embeddings=0)),
        "labels too": weighted(lambda stage: replace(stage.weights, labels=1.0)),
    }


def _assistant(plan: Plan) -> dict[str, Plan]:
    """A teacher assistant is what the `previous` stage gave: without it the original teaches throughout, in full width.

    At the width of the student the original would be a network cut to sizes that nobody trained.
    """

    def taught(stage: Stage) -> Stage:
        return replace(stage, teacher="original", teacher_width="full") if stage.teacher == "previous" else stage

    original = _stages(plan.recipe, taught)
    one = replace(original, stages=tuple(stage for stage in original.stages if stage.subnets == "grid"))
    return {
        "original teacher": replace(plan, recipe=original),
        "no width stage": replace(plan, recipe=one),
    }


def _teacher_width(plan: Plan) -> dict[str, Plan]:
    """Only a teacher from the `previous` stage has narrow sizes that were trained; the original is left as it is."""

    def changed(width: Any) -> Plan:  # noqa: ANN401 (one of two literals)
        return replace(
            plan,
            recipe=_stages(
                plan.recipe, lambda stage: replace(stage, teacher_width=width) if stage.teacher == "previous" else stage
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
    """A stage on the labels alone, by the schedule of the last one and a quarter as long."""
    stages = tuple(stage for stage in plan.recipe.stages if stage.name != FINETUNE.name)
    before = stages[-1]
    last = replace(FINETUNE, epochs=before.epochs / 4, lr=before.lr, schedule=before.schedule)
    return {
        "with": replace(plan, recipe=replace(plan.recipe, stages=(*stages, last))),
        "without": replace(plan, recipe=replace(plan.recipe, stages=stages)),
    }


def _recipe(plan: Plan) -> dict[str, Plan]:
    return {name: replace(plan, recipe=recipe) for name, recipe in RECIPES.items()}


def _depth_rule(plan: Plan) -> dict[str, Plan]:
    return {rule: replace(plan, depth_rule=rule) for rule in DEPTH_RULES}  # type: ignore[arg-type]


RECIPE = "recipe"

FACTORS: Mapping[str, Callable[[Plan], dict[str, Plan]]] = {
    "rewiring": _rewiring,
    "distillation": _distillation,
    "assistant": _assistant,
    "teacher-width": _teacher_width,
    "schedule": _schedule,
    "finetune": _finetune,
    "depth-rule": _depth_rule,
    RECIPE: _recipe,
}
"""Each factor's variants of a plan; those that are the plan itself are left out. `learning-rate` is a factor too: its
variants are the rates of the list."""

LEARNING_RATE = "learning-rate"
ALL_FACTORS = (*FACTORS, LEARNING_RATE)


def parsed(asked: str) -> tuple[str, str]:
    """A factor, and the one variant of it that is asked for: ``rewiring=random``. For all of them that is empty.

    :raises SettingError: an unknown factor, or no variant after the sign.
    """
    factor, sign, variant = asked.partition("=")
    if factor not in ALL_FACTORS:
        raise SettingError(one_of("factor", factor, ALL_FACTORS))
    if sign and factor == LEARNING_RATE:
        raise SettingError(f"{asked!r}: the variants of {factor} are the rates of the list; give --lrs")
    if sign and not variant:
        raise SettingError(f"{asked!r} names no variant; give {factor}=NAME for one, {factor} for all")
    return factor, variant


def variants_of(plan: Plan, factors: Sequence[str], *, regression: bool = False) -> dict[tuple[str, str], Plan]:
    """The plans that differ from a plan in one factor, by factor and variant; of equal ones the first.

    :param factors: names in `ALL_FACTORS`, for all variants of each; or ``factor=variant`` for one.
    :param regression: the task is one: variants that have nothing to learn from in it are left out.
    :raises SettingError: an unknown factor or variant, or one that the plan has already, or that learns nothing.
    """
    chosen: dict[tuple[str, str], Plan] = {}
    for asked in factors:
        factor, only = parsed(asked)
        variants = FACTORS[factor](plan) if factor in FACTORS else {}
        variants = {name: changed for name, changed in variants.items() if changed.recipe.stages}
        if only and only not in variants:
            raise SettingError(one_of(f"variant of {factor}", only, variants))
        if only and _same(variants[only], plan):
            others = ", ".join(name for name, changed in variants.items() if not _same(changed, plan))
            hint = (
                f"name another variant: {others}" if others else "no variant differs in it; --recipe two-stage has some"
            )
            raise SettingError(f"{asked!r} is what the recipe {plan.recipe.name} does already; {hint}")
        learning = {name: changed for name, changed in variants.items() if _learns(changed.recipe, regression)}
        if only and only not in learning:
            raise SettingError(f"{asked!r} leaves a regression nothing to learn from; name another variant")
        chosen |= {(factor, name): changed for name, changed in learning.items() if only in ("", name)}
    found: dict[tuple[str, str], Plan] = {}
    for key, changed in chosen.items():
        known = (other for (factor, _), other in found.items() if factor == key[0])
        if not any(_same(changed, other) for other in (plan, *known)):
            found[key] = changed
    return found


def _learns(recipe: Recipe, regression: bool) -> bool:
    """Whether every stage has a loss term: the logits of a regression may have none, see `Reduction`."""
    no_logits = regression and recipe.reduction.regression == "none"
    weights = (stage.weights for stage in recipe.stages)
    return all(w.needs_states or w.labels > 0 or (w.logits > 0 and not no_logits) for w in weights)


def _same(plan: Plan, other: Plan) -> bool:
    """Whether two plans train alike once their rates are tuned and their stages scaled to one cost."""

    def essence(plan: Plan) -> Plan:
        stages = plan.recipe.stages
        rate = plan.recipe.lr
        shares = (replace(stage, lr=stage.lr / rate, epochs=stage.epochs / stages[0].epochs) for stage in stages)
        return replace(plan, recipe=replace(plan.recipe, name="", stages=tuple(shares)))

    return essence(plan) == essence(other)
