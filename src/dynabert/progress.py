"""Progress bars for the command line: the stage, its steps, the losses of its largest and smallest Subnet, and when all
stages will be done.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from dynabert.hooks import Hooks, Snapshot, StepReport
from dynabert.recipes import Stage
from dynabert.workload import PlannedStage

LOADERS = """Extracted sizes that keep all heads (h1-...) will load with stock transformers; those with fewer heads with
dynabert, or with trust_remote_code=True where it is not installed."""


FIRST_STEPS = 5
"""Steps that a stage takes before its own pace counts: the first ones also make what later ones reuse."""


class Eta:
    """How long the stages of a run still take, the final sweep not counted.

    Steps are weighed by their FLOPs, and the pace is that of the running stage, evaluations included; before its first
    few steps, that of the stages before. Only what this process did counts: a resumed run has the pace of now.

    :param clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._stages: list[PlannedStage] = []
        self._begun: float | None = None
        self._place = self._first = self._done = 0
        self._since = 0.0
        self._earlier = (0.0, 0.0)  # seconds and FLOPs of the stages that this process has completed

    def planned(self, stages: Sequence[PlannedStage]) -> None:
        """All stages of a training, in their order; what was known of an earlier training is void."""
        self._stages, self._begun, self._earlier = list(stages), None, (0.0, 0.0)
        self._place = self._first = self._done = 0

    def started(self, name: str, n_steps: int, step: int) -> None:
        """A stage begins, or goes on at `step`."""
        if self._begun is None:
            self._begun = self._clock()
        else:
            seconds, flops = self._earlier
            self._earlier = (seconds + self._clock() - self._since, flops + self._stage_flops())
        names = [stage.name for stage in self._stages]
        if name not in names:
            self._stages, names = [PlannedStage(name, n_steps, 1.0)], [name]
        self._place, self._first, self._done, self._since = names.index(name), step, step, self._clock()

    def stepped(self, done: int) -> None:
        """So many steps of the stage are done."""
        self._done = done

    @property
    def elapsed_s(self) -> float:
        """Since the first stage of this process began."""
        return 0.0 if self._begun is None else self._clock() - self._begun

    def remaining_s(self) -> float | None:
        """Until the last stage is done; None before anything is known."""
        seconds, flops = self._clock() - self._since, self._stage_flops()
        if self._done - self._first < FIRST_STEPS:
            seconds, flops = self._earlier
        if not flops:
            return None
        running, *later = self._stages[self._place :]
        left = (running.n_steps - self._done) * running.flops + sum(stage.n_steps * stage.flops for stage in later)
        return left * seconds / flops

    def _stage_flops(self) -> float:
        return (self._done - self._first) * self._stages[self._place].flops


class Bars(Hooks):
    """Hooks that draw: one bar a stage. On a stream that is no terminal they write a line at each evaluation."""

    def __init__(self, progress: Progress, eta: Eta | None = None) -> None:
        self.progress, self.eta = progress, eta or Eta()
        self._bars: dict[str, TaskID] = {}

    def intended(self, n_trainings: int, budget: float) -> None:
        """Say what a study costs."""
        one = "1 training" if n_trainings == 1 else f"{n_trainings} trainings"
        line = f"at most {one}, each {budget:.4g} x as long as the run's own, and teachers of further seeds; "
        line += "what is kept from an earlier call costs nothing"
        self.progress.console.print(line, soft_wrap=True)

    def planned(self, stages: Sequence[PlannedStage]) -> None:
        """Weigh the stages to come."""
        self.eta.planned(stages)

    def started(self, stage: Stage, n_steps: int, step: int) -> None:
        """A bar for the stage, from the step that it goes on at; before the first, what will load the results."""
        if not self._bars:
            self.progress.console.print(LOADERS.replace("\n", " "), soft_wrap=True)
        self.eta.started(stage.name, n_steps, step)
        self._bars[stage.name] = self._add(stage.name, total=n_steps, completed=step)

    def stepped(self, report: StepReport) -> None:
        """Advance; say the losses."""
        bar = self._bars[report.stage]
        self.eta.stepped(report.step + 1)
        self.progress.update(bar, completed=report.step + 1, eta=f"eta {_clock_time(self.eta.remaining_s())}")
        if report.step + 1 == report.n_steps:
            self.progress.update(bar, eta="")
        if report.losses:
            names = list(dict.fromkeys([next(iter(report.losses)), list(report.losses)[-1]]))
            self.progress.update(bar, note="  ".join(f"{name} {_terms(report.losses[name])}" for name in names))

    def evaluated(self, stage: Stage, step: int, score: float, best: bool) -> None:
        """Say the score on the rows held out for choosing."""
        mark = " (best so far)" if best else ""
        times = f"{_clock_time(self.eta.elapsed_s)} elapsed, eta {_clock_time(self.eta.remaining_s())}"
        line = f"{stage.name}: step {step}, mean metric over its sizes {score:.4f}{mark}; {times}"
        self.progress.console.print(line, soft_wrap=True)

    def checkpoint(self, stage: Stage, snapshot: Callable[[], Snapshot]) -> None:
        """Nothing to draw."""

    def measuring(self, what: str, done: int, total: int) -> None:
        """A bar for measuring."""
        if what not in self._bars:
            self._bars[what] = self._add(what, total=total)
        self.progress.update(self._bars[what], completed=done)

    def _add(self, name: str, *, total: int, completed: int = 0) -> TaskID:
        self.progress.start()
        return self.progress.add_task(name, total=total, completed=completed, eta="", note="")


@contextmanager
def progress_bars(*, shown: bool = True) -> Iterator[Bars]:
    """Bars on standard error while the block runs; nothing at all where they are not `shown`."""
    columns = (
        TextColumn("{task.description:>8}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[eta]}"),
        TextColumn("{task.fields[note]}"),
    )
    console = Console(stderr=True, quiet=not shown)
    # On what is no terminal the lines of `Bars.evaluated` say it all.
    progress = Progress(*columns, console=console, disable=not (shown and console.is_terminal))
    try:
        yield Bars(progress)  # which starts it with its first bar: before that a mistake is one line and nothing else
    finally:
        if progress.live.is_started:
            progress.stop()


def _clock_time(seconds: float | None) -> str:
    return "-:--:--" if seconds is None else str(timedelta(seconds=round(seconds)))


def _terms(losses: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.3f}" for name, value in losses.items())
