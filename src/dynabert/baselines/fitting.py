"""Training of Subnets by a budget of FLOPs, through the one loop of `dynabert.distill`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dynabert.baselines.method import Spent
from dynabert.distill import Evaluate, Training, train_stage
from dynabert.elastic import ElasticModel
from dynabert.hooks import Hooks
from dynabert.recipes import Stage
from dynabert.subnet import Subnet, SubnetGrid
from dynabert.workload import StepRows, affordable_steps, mean_step_flops

if TYPE_CHECKING:
    from dynabert.batches import BatchSource


@dataclass(frozen=True)
class Only:
    """A schedule of one Subnet."""

    subnet: Subnet

    def subnets(self, grid: SubnetGrid, seed: int, step: int) -> tuple[Subnet, ...]:
        """That Subnet, in every step."""
        return (self.subnet,)


def steps_within(
    budget_flops: float, stages: Sequence[Stage], elastic: ElasticModel, batches: "BatchSource", *, seed: int
) -> int:
    """How many steps of every one of some stages a budget pays; their own epochs do not count.

    :raises SettingError: not even one step of each.
    """
    rows = StepRows.of(batches)
    return affordable_steps(budget_flops, sum(mean_step_flops(stage, elastic, rows, seed=seed) for stage in stages))


def fit_subnets(
    elastic: ElasticModel,
    stage: Stage,
    batches: "BatchSource",
    *,
    n_steps: int,
    training: Training,
    teacher: ElasticModel | None = None,
    evaluate: Evaluate | None = None,
    hooks: Hooks | None = None,
) -> Spent:
    """Train a network through so many steps of a stage, in place.

    :return: what that took: forward and backward passes of the students, and forward passes of their teachers.
    """
    flops = n_steps * mean_step_flops(stage, elastic, StepRows.of(batches), seed=training.seed)
    planned = replace(stage, epochs=n_steps / len(batches))
    train_stage(elastic, planned, batches, teacher=teacher, training=training, evaluate=evaluate, hooks=hooks)
    return Spent(flops, n_steps)
