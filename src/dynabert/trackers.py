"""TensorBoard and Weights & Biases, through accelerate's trackers: numbers while a run trains. Nothing else is sent.

Each number stands at one step that counts on over all stages, so a stage begins where the one before ended:

    <stage>/loss/<subnet>/<term>  unweighted; <stage>/lr, /gradient_norm, /tokens_per_second, /skipped_steps
    <stage>/select_score          at the last step before the evaluation

A run that goes on repeats the steps since its last checkpoint. TensorBoard is told to hide those of the interrupted
process; Weights & Biases goes on with the same run and keeps its first values, which are the same.
"""

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from dynabert.errors import SettingError, one_of
from dynabert.files import read_json, write_json
from dynabert.hooks import Hooks, StepReport
from dynabert.recipes import Stage
from dynabert.workload import PlannedStage

WANDB_FILE = "wandb.json"
PROJECT = "dynabert"


class Tracker(Protocol):
    """What is used of a tracker of accelerate."""

    def start(self) -> None:
        """Begin."""

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        """Write some numbers at a step."""

    def finish(self) -> None:
        """Write what is left, and close."""


def _tensorboard(out: Path, first_step: int) -> Tracker:
    from accelerate.tracking import TensorBoardTracker

    return TensorBoardTracker("tensorboard", out, purge_step=first_step)


def _wandb(out: Path, first_step: int) -> Tracker:
    from accelerate import PartialState
    from accelerate.tracking import WandBTracker

    PartialState()  # the tracker's own log does not work without; where several processes train it is there already
    path = out / WANDB_FILE
    if not path.exists():
        write_json(path, {"id": secrets.token_hex(8)})
    identity = str(read_json(path)["id"])
    return WandBTracker(PROJECT, id=identity, resume="allow", name=out.resolve().name, dir=str(out))


TRACKERS: dict[str, Callable[[Path, int], Tracker]] = {"tensorboard": _tensorboard, "wandb": _wandb}
"""Ways to watch a run, by name; each is also the name of the extra that brings its packages."""


class Tracking(Hooks):
    """Hooks that send the numbers of a run to trackers, which are opened when the first stage begins.

    :param names: in `TRACKERS`.
    :param out: the run folder.
    :param clock: seconds.
    :raises SettingError: an unknown name, or a tracker whose packages are not installed.
    """

    def __init__(self, names: Sequence[str], out: str | Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        for name in names:
            _check_installed(name)
        self._names, self._out, self._clock = tuple(dict.fromkeys(names)), Path(out), clock
        self._open: list[Tracker] = []
        self._offsets: dict[str, int] = {}
        self._next = 0  # offset of a stage that was not planned
        self._since, self._n_tokens = 0.0, 0

    def planned(self, stages: Sequence[PlannedStage]) -> None:
        """Give each stage its place on the common axis."""
        for stage in stages:
            self._place(stage.name, stage.n_steps)

    def started(self, stage: Stage, n_steps: int, step: int) -> None:
        """Open the trackers, at the step that the run begins or goes on with."""
        if stage.name not in self._offsets:
            self._place(stage.name, n_steps)
        if not self._open:
            self._open = [TRACKERS[name](self._out, self._offsets[stage.name] + step) for name in self._names]
            for tracker in self._open:
                tracker.start()
        self._restart_clock()

    def stepped(self, report: StepReport) -> None:
        """Send what the step reports, if it is one that is logged."""
        self._n_tokens += report.n_tokens
        if not report.losses:
            return
        seconds = self._clock() - self._since
        values: dict[str, float] = {
            f"loss/{subnet}/{term}": value for subnet, terms in report.losses.items() for term, value in terms.items()
        }
        values |= {"lr": report.lr, "gradient_norm": report.gradient_norm, "skipped_steps": report.n_skipped}
        if seconds > 0:
            values["tokens_per_second"] = self._n_tokens / seconds
        self._log(report.stage, report.step, values)
        self._restart_clock()

    def evaluated(self, stage: Stage, step: int, score: float, best: bool) -> None:
        """Send the score. The time that it took is not that of steps."""
        self._log(stage.name, step - 1, {"select_score": score})
        self._restart_clock()

    def close(self) -> None:
        """Let the trackers write what is left."""
        for tracker in self._open:
            tracker.finish()
        self._open = []

    def _place(self, name: str, n_steps: int) -> None:
        self._offsets[name] = self._next
        self._next += n_steps

    def _log(self, stage: str, step: int, values: dict[str, float]) -> None:
        for tracker in self._open:
            tracker.log({f"{stage}/{name}": value for name, value in values.items()}, step=self._offsets[stage] + step)

    def _restart_clock(self) -> None:
        self._since, self._n_tokens = self._clock(), 0


@contextmanager
def tracking(names: Sequence[str], out: str | Path) -> Iterator[Tracking]:
    """Hooks for some trackers, closed when the block ends.

    :param names: in `TRACKERS`; none is allowed.
    :param out: the run folder; TensorBoard's files go to its ``tensorboard/``.
    :raises SettingError: an unknown name, or a tracker whose packages are not installed.
    """
    hooks = Tracking(names, out)
    try:
        yield hooks
    finally:
        hooks.close()


def _check_installed(name: str) -> None:
    if name not in TRACKERS:
        raise SettingError(one_of("tracker", name, TRACKERS))
    missing = [package for package in ("accelerate", name) if not _is_package(package)]
    if missing:
        raise SettingError(f"tracker {name!r} needs {' and '.join(missing)}: pip install 'dynabert[{name}]'")


def _is_package(name: str) -> bool:
    """Whether it is installed; a folder of that name in the working folder, as wandb makes one, is not the package."""
    spec = find_spec(name)
    return spec is not None and spec.origin is not None
