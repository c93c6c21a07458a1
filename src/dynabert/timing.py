"""Timing calls that can be trusted: taking turns, so that a machine that slows down does so for all of them alike."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TypeVar

import numpy as np

from dynabert.energy import energy_counter, energy_of
from dynabert.sweep import Timing

Key = TypeVar("Key")
Inputs = TypeVar("Inputs")

Progress = Callable[[str, int, int], None]
"""Called with what is going on (``"predict"`` or ``"latency"``), how much of it is done, and how much there is."""


def tell(progress: Progress | None, what: str, done: int, total: int) -> None:
    """Report progress, where anyone asked for it."""
    if progress is not None:
        progress(what, done, total)


def nothing() -> None:
    """On a CPU a call is done when it returns."""


def interleaved(
    calls: Mapping[Key, Callable[[], object]],
    repeats: int,
    *,
    finish: Callable[[], None] = nothing,
    clock: Callable[[], float] = time.perf_counter,
    progress: Progress | None = None,
) -> dict[Key, np.ndarray]:
    """The times of each call, in seconds; they take turns in every repeat.

    :param calls: what to time.
    :param repeats: timed calls of each; an untimed one goes before each of them, as it would in a process that serves,
        and one round before all.
    :param finish: waits until what a call started is done.
    :param clock: seconds.
    :param progress: told how far it is.
    """
    for call in calls.values():
        call()
    times: dict[Key, list[float]] = {key: [] for key in calls}
    for repeat in range(repeats):
        tell(progress, "latency", repeat, repeats)
        for key, call in calls.items():
            call()
            finish()
            start = clock()
            call()
            finish()
            times[key].append(clock() - start)
    tell(progress, "latency", repeats, repeats)
    return {key: np.array(taken) for key, taken in times.items()}


def interleaved_ms(
    calls: Mapping[Key, Callable[[], object]],
    repeats: int,
    *,
    finish: Callable[[], None] = nothing,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Key, float]:
    """The medians of `interleaved`, in milliseconds."""
    times = interleaved(calls, repeats, finish=finish, clock=clock)
    return {key: 1e3 * float(np.median(taken)) for key, taken in times.items()}


def timings(
    calls: Mapping[Key, Callable[[Inputs], object]],
    inputs: Mapping[tuple[int, int], Inputs],
    *,
    repeats: int,
    finish: Callable[[], None] = nothing,
    on_cpu: bool = True,
    progress: Progress | None = None,
) -> dict[Key, tuple[Timing, ...]]:
    """What each of some models takes for each of some inputs: see `interleaved`, one shape after the other.

    Its energy as well, where the machine tells it.

    :param calls: models, by what they are called.
    :param inputs: by (batch, seq).
    :param on_cpu: the processor does the work: only then its energy is that of the call.
    """
    found: dict[Key, list[Timing]] = {key: [] for key in calls}
    counter = energy_counter() if on_cpu else None
    for shape, given in inputs.items():
        runs = {key: partial(call, given) for key, call in calls.items()}
        for key, seconds in interleaved(runs, repeats, finish=finish, progress=progress).items():
            energy = None if counter is None else energy_of(runs[key], counter, finish=finish)
            found[key].append(replace(timing_of(seconds, shape=shape), energy_mj=energy))
    return {key: tuple(times) for key, times in found.items()}


def timing_of(seconds: np.ndarray, *, shape: tuple[int, int]) -> Timing:
    """What the times of one call's repeats say.

    :param shape: batch and seq of the call.
    """
    batch, seq = shape
    low, median, high, p95 = (1e3 * np.percentile(seconds, (25, 50, 75, 95))).tolist()
    return Timing(batch=batch, seq=seq, median_ms=median, p95_ms=p95, spread=(high - low) / median)


def n_cores() -> int | None:
    """Processors that this process may run on; None where the system does not say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
