"""How much a training step computes, in FLOPs of the encoder: what times are compared by and extrapolated with."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING

from dynabert.elastic import ElasticModel
from dynabert.errors import SettingError
from dynabert.recipes import Stage
from dynabert.subnet import Subnet, encoder_flops

if TYPE_CHECKING:
    from dynabert.batches import BatchSource

BACKWARD = 2
"""FLOPs of a backward pass, in forward passes: one gradient of the inputs and one of the weights."""

_SAMPLED_BATCHES = 64  # whose rows stand for all
_SAMPLED_STEPS = 1000  # whose mean stands for a stage: within 2 % for schedules that draw their sizes


@dataclass(frozen=True)
class PlannedStage:
    """A stage that a run has before it.

    :param flops: of one step on one row of 128 tokens, the mean over the steps.
    """

    name: str
    n_steps: int
    flops: float


def step_flops(stage: Stage, elastic: ElasticModel, *, seed: int, step: int, seq: int = 128) -> int:
    """Encoder FLOPs of one step on one row: forward and backward of its students, forward of their teachers.

    :param elastic: the network that is trained.
    :param seed: of the run; schedules draw with it.
    :param step: of the stage.
    :param seq: tokens of the row, padding included.
    """
    return _passes_of(stage, elastic, seed=seed, step=step, forward=partial(_forward_flops, elastic, seq=seq))


def _passes_of(stage: Stage, elastic: ElasticModel, *, seed: int, step: int, forward: Callable[[Subnet], int]) -> int:
    total, taught = 0, None
    for subnet in stage.schedule.subnets(stage.grid(elastic.grid), seed, step):
        total += (1 + BACKWARD) * forward(subnet)
        if stage.teacher != "none" and stage.teacher_of(subnet) != taught:
            taught = stage.teacher_of(subnet)
            total += forward(taught)
    return total


def planned_stages(
    stages: Iterable[Stage], elastic: ElasticModel, *, steps_per_epoch: int, seed: int
) -> tuple[PlannedStage, ...]:
    """What some stages come to, in their order."""

    def planned(stage: Stage) -> PlannedStage:
        n_steps = stage.n_steps(steps_per_epoch)
        sampled = range(min(n_steps, _SAMPLED_STEPS))
        return PlannedStage(stage.name, n_steps, _mean_row_flops(stage, elastic, seed=seed, steps=sampled))

    return tuple(planned(stage) for stage in stages)


@dataclass(frozen=True)
class StepRows:
    """The rows of a mean training step.

    :param n_rows: over all micro-batches.
    :param seq: tokens of each, padding included.
    """

    n_rows: float
    seq: int

    @classmethod
    def of(cls, batches: "BatchSource") -> "StepRows":
        """Of the first steps of some batches, at most 64."""
        n_steps = min(len(batches), _SAMPLED_BATCHES)
        shapes = [batch.inputs["input_ids"].shape for step in range(n_steps) for batch in batches.micro_batches(step)]
        n_rows = sum(rows for rows, _ in shapes)
        return cls(n_rows / n_steps, round(sum(rows * seq for rows, seq in shapes) / n_rows))


def mean_step_flops(stage: Stage, elastic: ElasticModel, rows: StepRows, *, seed: int) -> float:
    """FLOPs of a mean step of a stage on rows of their real length, the mean over the first 1,000 it may take."""
    return rows.n_rows * _mean_row_flops(stage, elastic, seed=seed, steps=range(_SAMPLED_STEPS), seq=rows.seq)


def forward_flops(elastic: ElasticModel, subnet: Subnet, rows: StepRows) -> float:
    """FLOPs of one forward pass of a Subnet on the rows of a mean step."""
    return rows.n_rows * _forward_flops(elastic, subnet, seq=rows.seq)


def affordable_steps(budget_flops: float, flops: float) -> int:
    """How many training steps a budget pays.

    :param budget_flops: what may be spent.
    :param flops: of a mean step.
    :raises SettingError: not even one.
    """
    if not budget_flops >= flops:
        raise SettingError(
            f"a budget of {budget_flops:.3g} FLOPs does not pay one training step, which takes {flops:.3g}; raise it"
        )
    return int(budget_flops / flops)


def _mean_row_flops(stage: Stage, elastic: ElasticModel, *, seed: int, steps: range, seq: int = 128) -> float:
    forward = cache(partial(_forward_flops, elastic, seq=seq))  # few sizes make many steps
    return sum(_passes_of(stage, elastic, seed=seed, step=step, forward=forward) for step in steps) / len(steps)


def _forward_flops(elastic: ElasticModel, subnet: Subnet, *, seq: int) -> int:
    return encoder_flops(elastic.shape, elastic.slices(subnet), seq)
