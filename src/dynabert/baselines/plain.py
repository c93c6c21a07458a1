"""Networks of one size, each trained for itself: the first layers alone, or every size of the grid."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dynabert.baselines.fitting import Only, fit_subnets, steps_within
from dynabert.baselines.layerdrop import whole_layers
from dynabert.baselines.method import SeparateMethod, Small, Spent
from dynabert.distill import Training
from dynabert.elastic import ElasticModel
from dynabert.hooks import Hooks
from dynabert.measure import selection_score
from dynabert.recipes import RECIPES, TEACHER, Stage
from dynabert.rewire import rewire, score
from dynabert.subnet import EncoderShape, Subnet
from dynabert.tasks import Task

if TYPE_CHECKING:
    from dynabert.batches import Batches

_DISTILLED = replace(TEACHER, weights=RECIPES["two-stage"].stages[-1].weights, teacher="original")
"""The loss of our depth stage, from the fine-tuned network."""

SHARES = (1.0, 0.75, 0.5, 0.25)
"""Shares of the layers that the first ones are trained at."""


@dataclass(frozen=True)
class TaskRows:
    """The rows that a training sees, and how it is judged.

    :param train: by step.
    :param select: held-out rows for the choice of the best weights.
    """

    train: "Batches"
    select: "Batches"
    task: Task


def first_layers(shape: EncoderShape, shares: Sequence[float] = SHARES) -> tuple[Subnet, ...]:
    """The first layers of an encoder, for each share of them as many as cost no more than that, largest first."""
    # a share such as 1 / 3 times the layers may lie a rounding below the whole number
    counts = sorted({max(1, int(share * shape.n_layers + 1e-9)) for share in shares}, reverse=True)
    return tuple(whole_layers(shape, range(n_kept)) for n_kept in counts)


def fine_tuned(
    start: ElasticModel,
    rows: TaskRows,
    *,
    subnets: Sequence[Subnet],
    training: Training,
    lr: float,
    budget_flops: float,
    name: str = "first-layers",
    hooks: Hooks | None = None,
) -> SeparateMethod:
    """Each Subnet of a pre-trained encoder fine-tuned on labels, with weights of its own.

    :param start: the encoder with a fresh head.
    :param subnets: which.
    :param budget_flops: of all of them together; each is trained for the same number of steps.
    """
    stage = replace(TEACHER, lr=lr)
    return _each(
        start, None, stage, rows, subnets=subnets, budget_flops=budget_flops, training=training, name=name, hooks=hooks
    )


def distilled(
    teacher: ElasticModel,
    rows: TaskRows,
    *,
    subnets: Sequence[Subnet],
    training: Training,
    lr: float,
    budget_flops: float,
    name: str = "alone",
    hooks: Hooks | None = None,
) -> SeparateMethod:
    """Each Subnet of a fine-tuned network distilled from it, by the loss of our depth stage, with weights of its own.

    :param teacher: the network that each starts from and learns from; where heads or neurons are cut, best rewired.
    :param subnets: which.
    :param budget_flops: of all of them together; each is trained for the same number of steps.
    """
    stage = replace(_DISTILLED, lr=lr)
    return _each(
        teacher,
        teacher,
        stage,
        rows,
        subnets=subnets,
        budget_flops=budget_flops,
        training=training,
        name=name,
        hooks=hooks,
    )


def rewired(teacher: ElasticModel, train: "Batches") -> ElasticModel:
    """A copy whose important heads and neurons come first. Scoring is not counted as training."""
    copy = teacher.copy()
    rewire(copy, score(teacher, train))
    return copy


def _each(
    source: ElasticModel,
    teacher: ElasticModel | None,
    stage: Stage,
    rows: TaskRows,
    *,
    subnets: Sequence[Subnet],
    budget_flops: float,
    training: Training,
    name: str,
    hooks: Hooks | None,
) -> SeparateMethod:
    """One training after the other; of each only its small model is kept."""
    stages = {subnet: replace(stage, name=name, schedule=Only(subnet)) for subnet in subnets}
    n_steps = steps_within(budget_flops, tuple(stages.values()), source, rows.train, seed=training.seed)
    members, spent = {}, Spent()
    for subnet, own_stage in stages.items():
        elastic = source.copy()
        spent += fit_subnets(
            elastic,
            own_stage,
            rows.train,
            n_steps=n_steps,
            training=training,
            teacher=teacher,
            evaluate=selection_score(rows.select, rows.task, subnets=(subnet,), precision=training.precision),
            hooks=hooks,
        )
        members[subnet.name] = Small.of(elastic, subnet)
    return SeparateMethod(name=name, members=members, spent=spent)
