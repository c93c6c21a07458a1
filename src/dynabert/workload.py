"""How much a training step computes, in FLOPs of the encoder: what times are compared by and extrapolated with."""

from collections.abc import Iterable
from dataclasses import dataclass

from dynabert.elastic import ElasticModel
from dynabert.recipes import Stage
from dynabert.subnet import Subnet, encoder_flops

BACKWARD = 2
"""FLOPs of a backward pass, in forward passes: one gradient of the inputs and one of the weights."""

_SAMPLED = 64  # steps whose mean stands for a stage: exact for the schedules `all` and, nearly, `ladder`


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
    total, taught = 0, None
    for subnet in stage.schedule.subnets(stage.grid(elastic.grid), seed, step):
        total += (1 + BACKWARD) * _forward_flops(elastic, subnet, seq)
        if stage.teacher != "none" and stage.teacher_of(subnet) != taught:
            taught = stage.teacher_of(subnet)
            total += _forward_flops(elastic, taught, seq)
    return total


def planned_stages(
    stages: Iterable[Stage], elastic: ElasticModel, *, steps_per_epoch: int, seed: int
) -> tuple[PlannedStage, ...]:
    """What some stages come to, in their order."""

    def planned(stage: Stage) -> PlannedStage:
        n_steps = stage.n_steps(steps_per_epoch)
        sampled = [step_flops(stage, elastic, seed=seed, step=step) for step in range(min(n_steps, _SAMPLED))]
        return PlannedStage(stage.name, n_steps, sum(sampled) / len(sampled))

    return tuple(planned(stage) for stage in stages)


def _forward_flops(elastic: ElasticModel, subnet: Subnet, seq: int) -> int:
    return encoder_flops(elastic.shape, elastic.slices(subnet), seq)
