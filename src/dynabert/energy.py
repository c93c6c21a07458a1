"""Energy of a call where the processor tells it (RAPL, on Linux): of all its cores, whatever else runs on them.

So it is a proxy: right on an idle machine, too much on a busy one, and without what memory and power supply take.
"""

import time
from collections.abc import Callable
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
_PACKAGES = "intel-rapl:*"  # AMD's processors too; parts of a package have a second number
_AT_LEAST_S = 0.2  # the counters move about once a millisecond


def energy_counter(folder: Path = POWERCAP) -> Callable[[], float] | None:
    """Millijoules that the processors of this machine have used since some moment; None where it does not tell.

    :param folder: where the system has its counters.
    """
    packages = [path for path in sorted(folder.glob(_PACKAGES)) if path.name.count(":") == 1]
    try:
        counters = [_Counter(path) for path in packages]
    except (OSError, ValueError):
        return None
    return (lambda: sum(counter.millijoules() for counter in counters)) if counters else None


class _Counter:
    """One processor's, which begins anew at its highest value.

    :raises OSError: it may not be read, as by default nobody but root may.
    """

    def __init__(self, package: Path) -> None:
        self._path = package / "energy_uj"
        self._range = int((package / "max_energy_range_uj").read_text())
        self._last, self._total = self._read(), 0

    def millijoules(self) -> float:
        """Since the counter was made; asked for at least once in each of its rounds, a minute at the shortest."""
        now = self._read()
        self._total += now - self._last if now >= self._last else now + self._range - self._last
        self._last = now
        return self._total / 1000

    def _read(self) -> int:
        return int(self._path.read_text())


def energy_of(
    call: Callable[[], object],
    counter: Callable[[], float],
    *,
    finish: Callable[[], None],
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Millijoules of one call: the mean of as many as fill a fifth of a second.

    :param finish: waits until what a call started is done.
    """
    n, began, before = 0, clock(), counter()
    while n == 0 or clock() - began < _AT_LEAST_S:
        call()
        finish()
        n += 1
    return (counter() - before) / n
