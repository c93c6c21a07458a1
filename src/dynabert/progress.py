"""Progress bars for the command line: the stage, its steps, the losses of its largest and smallest Subnet, the ETA."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from dynabert.distill import Hooks, Snapshot, StepReport
from dynabert.recipes import Stage

LOADERS = """Extracted sizes that keep all heads (h1-...) will load with stock transformers; those with fewer heads with
dynabert, or with trust_remote_code=True where it is not installed."""


class Bars(Hooks):
    """Hooks that draw: one bar a stage. On a stream that is no terminal they write a line at each evaluation."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self._bars: dict[str, TaskID] = {}

    def started(self, stage: Stage, n_steps: int, step: int) -> None:
        """A bar for the stage, from the step that it goes on at; before the first, what will load the results."""
        if not self._bars:
            self.progress.console.print(LOADERS)
        self._bars[stage.name] = self.progress.add_task(stage.name, total=n_steps, completed=step, note="")

    def stepped(self, report: StepReport) -> None:
        """Advance; say the losses."""
        bar = self._bars[report.stage]
        self.progress.update(bar, completed=report.step + 1)
        if report.losses:
            names = list(dict.fromkeys([next(iter(report.losses)), list(report.losses)[-1]]))
            self.progress.update(bar, note="  ".join(f"{name} {_terms(report.losses[name])}" for name in names))

    def evaluated(self, stage: Stage, step: int, score: float, best: bool) -> None:
        """Say the score on the rows held out for choosing."""
        mark = " (best so far)" if best else ""
        self.progress.console.print(f"{stage.name}: step {step}, mean metric over its sizes {score:.4f}{mark}")

    def checkpoint(self, stage: Stage, snapshot: Callable[[], Snapshot]) -> None:
        """Nothing to draw."""

    def measuring(self, what: str, done: int, total: int) -> None:
        """A bar for measuring."""
        if what not in self._bars:
            self._bars[what] = self.progress.add_task(what, total=total, note="")
        self.progress.update(self._bars[what], completed=done)


@contextmanager
def progress_bars(*, shown: bool = True) -> Iterator[Bars]:
    """Bars on standard error while the block runs; nothing at all where they are not `shown`."""
    columns = (
        TextColumn("{task.description:>8}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(elapsed_when_finished=False),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True, quiet=not shown), disable=not shown) as progress:
        yield Bars(progress)


def _terms(losses: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.3f}" for name, value in losses.items())
