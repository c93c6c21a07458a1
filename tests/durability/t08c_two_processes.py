"""T8(c): one process that accumulates twice, one that does not, and two gloo processes train the same network.

A trial is one job of `split_training`: 50 steps in float64 without dropout. Row ids must be identical, weights within
1e-9. Where padding is counted in the loss, only micro-batches of the same shape can agree, so the job that takes its
rows in one piece is left out there.
"""

import random
from itertools import chain, cycle, islice
from pathlib import Path

from harness import Check, Result, main, torch
from ranks import TESTS, start_ranks, wait_for
from split_training import outcome, read_outcome

N_STEPS = 50
TOLERANCE = 1e-9
JOBS = ("sandwich", "depth", "labels", "published", "tokens")
IN_ONE_PIECE = ("sandwich", "depth", "labels")


def difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """The largest one of any trained weight."""
    weights = [name for name, tensor in first.items() if tensor.dtype == torch.float64]
    return max(float((first[name] - second[name]).abs().max()) for name in weights)


def run(result: Result, trials: int, _: random.Random, folder: Path) -> None:
    """Train each job three ways; nothing here is random."""
    jobs = list(dict.fromkeys(islice(cycle(JOBS), trials)))
    largest, steps = {"accumulated": 0.0, "in one piece": 0.0}, 0
    ended = wait_for(start_ranks(TESTS / "split_training.py", folder, N_STEPS, *jobs), timeout_s=900)
    if not result.check(not any(code for code, _ in ended), f"a rank failed: {ended}"):
        return
    for job in jobs:
        first, second = (read_outcome(folder, job, rank) for rank in range(2))
        ids = [mine + other for mine, other in zip(first.ids, second.ids, strict=True)]
        one = outcome(job, n_steps=N_STEPS, accumulate=2)
        steps += len(ids)
        result.check(ids == one.ids, f"{job}: other rows than one process that accumulates")
        largest["accumulated"] = max(largest["accumulated"], difference(first.tensors, one.tensors))
        if job in IN_ONE_PIECE:
            whole = outcome(job, n_steps=N_STEPS)
            rows = [sorted(chain.from_iterable(parts)) for parts in ids]
            result.check(rows == [sorted(parts[0]) for parts in whole.ids], f"{job}: other rows than one process")
            largest["in one piece"] = max(largest["in one piece"], difference(first.tensors, whole.tensors))
    for how, value in largest.items():
        result.check(value <= TOLERANCE, f"weights differ by {value} ({how})")
    figures = {f"largest weight difference, {how}": f"{value:.1e}" for how, value in largest.items()}
    result.figures |= {"jobs": ", ".join(jobs), "steps_with_equal_row_ids": steps, **figures}


CHECK = Check("T8c", "two processes equal one", len(JOBS), run)

if __name__ == "__main__":
    main(CHECK)
