"""T7: at no moment of a save are there fewer good checkpoints than before it, damaged ones or not."""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from harness import Check, Result, main

from dynabert.checkpoint import TENSORS, _is_good, save_checkpoint
from dynabert.hooks import Progress, Snapshot

CALLS = ("mkdir", "open", "write", "fsync", "close", "rename", "replace", "unlink", "rmdir", "ftruncate")


@contextmanager
def counted_after_every_call(folder: Path, seen: list[int]) -> Iterator[None]:
    """Count the good checkpoints after every call to the system that writes."""
    inside = False

    def watched(real: Any) -> Any:
        def call(*arguments: Any, **settings: Any) -> Any:
            nonlocal inside
            answer = real(*arguments, **settings)
            if not inside:
                inside = True
                seen.append(sum(_is_good(path) for path in folder.glob("width-*")))
                inside = False
            return answer

        return call

    kept = {name: getattr(os, name) for name in CALLS}
    save_file = safetensors.torch.save_file
    for name, real in kept.items():
        setattr(os, name, watched(real))
    safetensors.torch.save_file = watched(save_file)
    try:
        yield
    finally:
        for name, real in kept.items():
            setattr(os, name, real)
        safetensors.torch.save_file = save_file


def snapshot(step: int) -> Snapshot:
    return Snapshot(
        {"weights/a": torch.full((100,), float(step)), "optimizer/step/a": torch.tensor(1.0)}, Progress(step)
    )


def run(result: Result, trials: int, rng: random.Random, folder: Path) -> None:
    """So many saves of which two stay; before every other one a checkpoint, the newest or the oldest, is damaged."""
    calls = 0
    least = {1: 99, 2: 99}
    for with_damage in (False, True):
        place = folder / f"damage-{with_damage}"
        place.mkdir()
        for step in range(1, trials + 1):
            there = sorted(path for path in place.glob("width-*"))
            if with_damage and step > 2 and step % 2 == 0:
                spoilt = rng.choice(there) / TENSORS
                spoilt.write_bytes(spoilt.read_bytes()[:-3])
            before = sum(_is_good(path) for path in there)
            seen: list[int] = []
            with counted_after_every_call(place, seen):
                save_checkpoint(place, "width", snapshot(step), keep=2)
            calls += len(seen)
            result.check(min(seen) >= min(before, 2), f"save {step}: {before} good before, {min(seen)} in between")
            after = sum(_is_good(path) for path in place.glob("width-*"))
            result.check(after == min(2, before + 1), f"save {step}: {before} good before, {after} after")
            if not with_damage and step > 1:
                least[min(2, step - 1)] = min(least[min(2, step - 1)], min(seen))
    result.check(least[1] >= 1, "after the first save there was a moment with no good checkpoint")
    result.check(trials < 3 or least[2] >= 2, "after the second save there was a moment with fewer than two")
    result.figures |= {
        "saves": 2 * trials,
        "calls": calls,
        "least_after_first": least[1],
        "least_after_second": least[2],
    }


CHECK = Check("T7", "never fewer good checkpoints than before", 20, run)

if __name__ == "__main__":
    main(CHECK)
