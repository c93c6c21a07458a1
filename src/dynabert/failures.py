"""What happens when something goes wrong: exit codes, signals, full disks, NaN and infinity.

docs/reliability.md has it as a table. Files and folders that appear whole or not at all, and the retry of transient
errors, are in `dynabert.files` and `dynabert.folders`.
"""

import logging
import math
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

from dynabert.errors import NonFiniteError, SettingError, Stopped, StorageError, check_choices
from dynabert.files import PAUSES_S, is_full

if TYPE_CHECKING:
    from types import FrameType

    from torch import Tensor

EXIT_CODES = {
    0: "done",
    2: "a setting or an option is wrong, or the run folder belongs to another run or is in use",
    3: "data or a model cannot be used, or training met NaN or infinity",
    74: "reading or writing failed: disk full, no permission, I/O error; or another process of the job is gone",
    130: "stopped by Ctrl-C",
    143: "stopped by SIGTERM",
}

SECOND_SIGNAL_S = 0.5
"""A signal this soon after the first is the same request: `timeout` and job systems send it to process and group."""

AGAIN_S = 0.05
"""How long after a stop that was lost in a destructor it is asked for again."""

LOOK_S, RETRY_S, LOG_S = 1.0, 5.0, 60.0
"""While waiting for space: seconds between looks at the disk, at least between attempts, and at most between them. A
shared disk changes all the time."""

_CHECKED_AT_ONCE = 2**20  # numbers
MAX_BAD_STEPS = 5
"""Steps with NaN or infinity in a row that end a stage."""

log = logging.getLogger("dynabert")

Result = TypeVar("Result")


@dataclass(frozen=True)
class Saving:
    """When training saves where it stands, and what it does when the disk is full. No result depends on it.

    :param minutes: time between checkpoints.
    :param steps: also save after every so many steps; None for the time alone.
    :param keep: how many good checkpoints of a stage stay.
    :param on_disk_full: ``exit`` after some attempts, or ``wait`` until there is space.
    """

    minutes: float = 5.0
    steps: int | None = None
    keep: int = 2
    on_disk_full: Literal["exit", "wait"] = "exit"

    def __post_init__(self) -> None:
        check_choices(self)
        if not self.minutes >= 0:
            raise SettingError(f"minutes between checkpoints must not be negative, not {self.minutes}")
        if self.steps is not None and self.steps < 1:
            raise SettingError(f"steps between checkpoints must be 1 or more, not {self.steps}")
        if self.keep < 1:
            raise SettingError(f"at least 1 checkpoint has to be kept, not {self.keep}")


# Signals


@dataclass
class _Request:
    """Signals belong to the process, so there is one of these."""

    signum: int | None = None
    at: float = 0.0
    held: bool = False


_request = _Request()


@contextmanager
def stop_signals() -> Iterator[None]:
    """Let SIGTERM and Ctrl-C end the block by `Stopped`: at once, or where `held` says so after what must not be torn.

    A second signal ends the process on the spot. A signal that was ignored before stays so. Outside the main thread,
    where Python has no signals, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _request.signum, _request.held = None, False
    former = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number, handler in former.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _on_signal)
    hook = sys.unraisablehook
    sys.unraisablehook = partial(_on_unraisable, hook)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in former.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        _request.signum = None


def _on_signal(signum: int, _: "FrameType | None") -> None:
    if _request.signum is not None:
        if time.monotonic() - _request.at >= SECOND_SIGNAL_S:
            os._exit(128 + signum)
        return
    _request.signum, _request.at = signum, time.monotonic()
    if not _request.held:
        raise Stopped(signum)


def _on_unraisable(otherwise: "Callable[[sys.UnraisableHookArgs], object]", what: "sys.UnraisableHookArgs") -> None:
    """A stop that came inside a destructor, where Python drops exceptions, is asked for again a moment later."""
    if not isinstance(what.exc_value, Stopped):
        otherwise(what)
        return
    _request.signum = None
    again = threading.Timer(AGAIN_S, os.kill, (os.getpid(), what.exc_value.signum))
    again.daemon = True
    again.start()


@contextmanager
def held() -> Iterator[None]:
    """Put a stop off until the block has ended.

    :raises Stopped: at the end of the block, if a signal came.
    """
    former, _request.held = _request.held, True
    try:
        yield
    finally:
        _request.held = former
    _stop_if_asked()


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside `held`: a block that may be torn anywhere, since what it was about to give is then thrown away.

    :raises Stopped: anywhere in the block.
    """
    former, _request.held = _request.held, False
    try:
        _stop_if_asked()
        yield
    finally:
        _request.held = former


def asked_signal() -> int | None:
    """The number of the signal that asks this process to end, or None. For loops that stop at a place of their own."""
    return _request.signum


def _stop_if_asked() -> None:
    if _request.signum is not None and not _request.held:
        raise Stopped(_request.signum)


# Full disks


def with_space(action: Callable[[], Result], folder: Path, on_disk_full: Literal["exit", "wait"]) -> Result:
    """Write something, again some times, or as long as it takes, if the disk is full.

    :param action: writes it, whole or not at all.
    :param folder: on the disk in question.
    :param on_disk_full: see `Saving`. Nobody waits any more once a signal has come.
    :return: what the action returned.
    :raises StorageError: the disk stayed full, or another error of writing.
    """
    for pause_s in PAUSES_S:
        try:
            return action()
        except StorageError as error:
            if not is_full(error):
                raise
            log.warning("%s; trying again", error)
        time.sleep(pause_s)
    while True:
        try:
            return action()
        except StorageError as error:
            if not is_full(error) or on_disk_full == "exit" or _request.signum is not None:
                raise
            _wait_for_space(folder, error)


def _wait_for_space(folder: Path, error: StorageError) -> None:
    """Return when the disk has more space than now, or after a minute: what fills a quota cannot be seen."""
    before = shutil.disk_usage(folder).free
    log.warning("%s; waiting for space, %s are free", error, megabytes(before))
    begun = time.monotonic()
    while (passed := time.monotonic() - begun) < LOG_S:
        if passed >= RETRY_S and shutil.disk_usage(folder).free > before:
            return
        with interruptible():
            time.sleep(LOOK_S)


def check_space(folder: Path, needed: int) -> None:
    """Refuse to begin what would fill the disk.

    :param folder: where it will be written; it need not exist.
    :param needed: bytes.
    :raises StorageError: the disk has less free than that.
    """
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise StorageError(
            f"{folder} needs {megabytes(needed)} for checkpoints and models, and its disk has {megabytes(free)} free; "
            f"free some space or give a folder on another disk"
        )


def megabytes(n_bytes: int) -> str:
    """Bytes as a person reads them."""
    return f"{n_bytes / 1e6:,.1f} MB"


# NaN and infinity


class Counting(Protocol):
    """Where a stage stands, as far as steps that were left out are concerned."""

    step: int
    bad_steps: int
    """In a row."""
    skipped: int
    """In the whole stage."""


def may_step(progress: Counting, values: Mapping[str, float], *, stage: str, rows: Iterable[int]) -> bool:
    """Whether the optimizer may take a step; one with NaN or infinity is counted and left out.

    :param progress: its counts are changed.
    :param values: what must be finite, by name: the loss as well as the norm of the gradient, since a loss can be NaN
        where nothing flows back from it.
    :param stage: for messages.
    :param rows: ids of the rows of the batch.
    :raises NonFiniteError: the last of too many such steps in a row.
    """
    bad = [f"{name} {value}" for name, value in values.items() if not math.isfinite(value)]
    if not bad:
        progress.bad_steps = 0
        return True
    progress.bad_steps += 1
    progress.skipped += 1
    ids = list(rows)
    named = ", ".join(map(str, ids[:8])) + (", …" if len(ids) > 8 else "")
    what = f"{' and '.join(bad)} at step {progress.step} of stage {stage!r} (row ids {named})"
    if progress.bad_steps >= MAX_BAD_STEPS:
        raise NonFiniteError(
            f"{what}, the last of {MAX_BAD_STEPS} such steps in a row; lower the learning rate or look at these rows"
        )
    log.warning("%s: this step is left out", what)
    return False


def check_finite(tensors: "Mapping[str, Tensor]", where: Path) -> None:
    """Refuse to publish NaN or infinity.

    :param tensors: what would be saved, by name.
    :param where: the folder it would be saved to.
    :raises NonFiniteError: a tensor that is not finite; the line names it.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not all(bool(part.isfinite().all()) for part in _parts(tensor)):
            raise NonFiniteError(
                f"{name} holds NaN or infinity and is not saved to {where}; what was saved before is as it was; "
                f"lower the learning rate"
            )


def _parts(tensor: "Tensor") -> "tuple[Tensor, ...]":
    """A tensor in parts of a few megabytes: asking all of it at once takes more memory than it has itself."""
    return tensor.detach().flatten().split(_CHECKED_AT_ONCE)
