"""T8(c): one process that accumulates twice, one that does not, and two gloo processes train the same network.

A trial is one job of `split_training`: 50 steps in float64 without dropout. Row ids must be identical, weights within
1e-9. Where padding is counted in the loss, only micro-batches of the same shape can agree, so the job that takes its
rows in one piece is left out there.
"""

import sys
import tempfile
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1])]

import torch
from rank_report import report
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


def run(trials: int, seed: int) -> tuple[dict[str, Any], list[str]]:
    """Train each job three ways; the seed has no part in it."""
    torch.set_num_threads(1)
    jobs, failures = list(dict.fromkeys(islice(cycle(JOBS), trials))), []
    largest, steps = {"accumulated": 0.0, "in one piece": 0.0}, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for code, said in wait_for(start_ranks(TESTS / "split_training.py", folder, N_STEPS, *jobs), timeout_s=900):
            if code:
                return {}, [f"a rank left with {code}: {said}"]
        for job in jobs:
            first, second = (read_outcome(folder, job, rank) for rank in range(2))
            ids = [mine + other for mine, other in zip(first.ids, second.ids, strict=True)]
            one = outcome(job, n_steps=N_STEPS, accumulate=2)
            steps += len(ids)
            if ids != one.ids:
                failures.append(f"{job}: other rows than one process that accumulates")
            largest["accumulated"] = max(largest["accumulated"], difference(first.tensors, one.tensors))
            if job in IN_ONE_PIECE:
                whole = outcome(job, n_steps=N_STEPS)
                if [sorted(chain.from_iterable(parts)) for parts in ids] != [sorted(parts[0]) for parts in whole.ids]:
                    failures.append(f"{job}: other rows than one process")
                largest["in one piece"] = max(largest["in one piece"], difference(first.tensors, whole.tensors))
    failures += [f"weights differ by {value} ({how})" for how, value in largest.items() if not value <= TOLERANCE]
    figures = {f"largest weight difference, {how}": f"{value:.1e}" for how, value in largest.items()}
    return {"jobs": ", ".join(jobs), "steps_with_equal_row_ids": steps, **figures}, failures


if __name__ == "__main__":
    report("T8c", "two processes equal one", len(JOBS), run)
