"""Memory of this process: watching the peak, and giving back what has been freed."""

import ctypes
import os
import resource
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def peak_memory(device: "torch.device | str" = "cpu") -> Callable[[], int]:
    """Begin to watch memory: the result, when called, is the most since then, in bytes.

    :param device: of a GPU, what torch has allocated there. On a CPU, the resident memory of the process; Linux can
        begin that count anew, elsewhere it is the most since the process began.
    """
    import torch

    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return lambda: torch.cuda.max_memory_allocated(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _high_water_mark
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _high_water_mark() -> int:
    lines = Path(f"/proc/{os.getpid()}/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def trim_heap() -> None:
    """Give memory that has been freed back to the system, where the C library (glibc) would keep it; else do nothing.

    Tensors of ever other sizes, as batches of mixed lengths make them, leave holes in the heap: without this the
    resident memory of a training grows by half within its first hundred steps.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
