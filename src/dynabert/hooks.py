"""What the training loop says while it runs, and to whom: reports of steps, scores and checkpoints that are due."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from dynabert.recipes import Stage
from dynabert.workload import PlannedStage


@dataclass(frozen=True)
class StepReport:
    """What one step did, over all ranks.

    :param n_tokens: in its rows, padding not counted.
    :param n_skipped: steps of the stage so far that were left out for NaN or infinity.
    :param losses: each term of each Subnet, unweighted, on the steps that are logged, else empty.
    :param skipped: row ids of the batch where the step was left out for NaN or infinity, else empty.
    """

    stage: str
    step: int
    n_steps: int
    lr: float
    gradient_norm: float
    n_tokens: int
    n_skipped: int
    losses: dict[str, dict[str, float]] = field(default_factory=dict)
    skipped: tuple[int, ...] = ()


@dataclass
class Progress:
    """Where a stage stands. With the weights and the optimizer's tensors this is all that a resumed stage needs.

    :param step: steps taken, those that were left out included.
    :param evaluated_step: where the network was last scored: a stop may come between a step and its evaluation.
    :param bad_steps: left out for NaN or infinity, in a row; `skipped`, in the whole stage.
    """

    step: int = 0
    best_step: int = -1
    best_score: float = float("-inf")
    evaluated_step: int = 0
    bad_steps: int = 0
    skipped: int = 0


@dataclass(frozen=True)
class Snapshot:
    """Everything a stage needs to go on exactly: named tensors (weights, optimizer, best weights) and its progress."""

    tensors: dict[str, Tensor]
    progress: Progress


class Hooks:
    """What the caller of the loop may hang on it; every method does nothing by default, and is called on every rank."""

    def intended(self, n_trainings: int, budget: float) -> None:
        """Before the first training of a study.

        :param n_trainings: how many there are at most, teachers not counted.
        :param budget: training FLOPs of each, as a share of those of the run's recipe.
        """

    def planned(self, stages: Sequence[PlannedStage]) -> None:
        """Before the first stage: all that the run has, those included that an earlier process has done."""

    def started(self, stage: Stage, n_steps: int, step: int) -> None:
        """A stage begins, or goes on at `step`."""

    def stepped(self, report: StepReport) -> None:
        """A step has been taken."""

    def evaluated(self, stage: Stage, step: int, score: float, best: bool) -> None:
        """The network has been scored on held-out rows; `best` so far or not."""

    def checkpoint(self, stage: Stage, snapshot: Callable[[], Snapshot]) -> None:
        """A checkpoint is due; call `snapshot` for what it holds."""


class HookList(Hooks):
    """Several hooks as one: each is called in turn."""

    def __init__(self, *hooks: Hooks) -> None:
        self.hooks = hooks

    def intended(self, n_trainings: int, budget: float) -> None:
        """Pass it on."""
        for hooks in self.hooks:
            hooks.intended(n_trainings, budget)

    def planned(self, stages: Sequence[PlannedStage]) -> None:
        """Pass it on."""
        for hooks in self.hooks:
            hooks.planned(stages)

    def started(self, stage: Stage, n_steps: int, step: int) -> None:
        """Pass it on."""
        for hooks in self.hooks:
            hooks.started(stage, n_steps, step)

    def stepped(self, report: StepReport) -> None:
        """Pass it on."""
        for hooks in self.hooks:
            hooks.stepped(report)

    def evaluated(self, stage: Stage, step: int, score: float, best: bool) -> None:
        """Pass it on."""
        for hooks in self.hooks:
            hooks.evaluated(stage, step, score, best)

    def checkpoint(self, stage: Stage, snapshot: Callable[[], Snapshot]) -> None:
        """Pass it on."""
        for hooks in self.hooks:
            hooks.checkpoint(stage, snapshot)
