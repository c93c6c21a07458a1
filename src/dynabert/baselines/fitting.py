"""Training of Subnets by a budget of FLOPs, through the one loop of `dynabert.distill`."""

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


def fit_subnets(
    elastic: ElasticModel,
    stage: Stage,
    batches: "BatchSource",
    *,
    budget_flops: float,
    training: Training,
    teacher: ElasticModel | None = None,
    evaluate: Evaluate | None = None,
    hooks: Hooks | None = None,
) -> Spent:
    """Train a network through one stage, in place, for as many steps as a budget pays; what was spent.

    :param stage: its epochs are set by the budget.
    :param budget_flops: forward and backward passes of the students, and forward passes of their teachers.
    :raises SettingError: a budget below one step.
    """
    flops = mean_step_flops(stage, elastic, StepRows.of(batches), seed=training.seed)
    n_steps = affordable_steps(budget_flops, flops)
    planned = replace(stage, epochs=n_steps / len(batches))
    train_stage(elastic, planned, batches, teacher=teacher, training=training, evaluate=evaluate, hooks=hooks)
    return Spent(n_steps * flops, n_steps)
