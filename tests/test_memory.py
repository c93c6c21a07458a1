"""Watching the peak of this process, and giving memory back."""

import sys
from pathlib import Path

import pytest

from dynabert.memory import peak_memory, trim_heap


def test_memory_is_watched_anew() -> None:
    first = peak_memory()
    block = bytearray(200_000_000)
    assert first() >= 200_000_000
    del block
    assert peak_memory()() <= first()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc; other systems have other C libraries")
def test_what_was_freed_goes_back_to_the_system() -> None:
    def resident() -> int:
        return 4096 * int(Path("/proc/self/statm").read_text().split()[1])

    # Many small blocks, every other one freed at last: too small to be given back one by one.
    blocks = [bytearray(60_000) for _ in range(2000)]
    kept = blocks[::100]
    full = resident()
    del blocks
    trim_heap()
    assert resident() < full - 50_000_000
    assert len(kept) == 20
