"""Energy of a call where the processor tells it (RAPL, on Linux): of all its cores, whatever else runs on them.

So it is a proxy: right on an idle machine, too much on a busy one, and without what memory and power supply take.
"""

import time
from collections.abc import Callable
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
_ZONES = "intel-rapl:*"  # AMD's processors too
_PACKAGE = "package"  # so begins the name of a whole processor; other zones are parts of one, or hold several
_AT_LEAST_S = 0.2  # the counters move about once a millisecond


EnergyCounter = Callable[[], float | None]
"""Millijoules since some moment; None if it cannot be read any more."""


def energy_counter(folder: Path = POWERCAP) -> EnergyCounter | None:
    """What the processors of this machine have used; None where it does not tell.

    :param folder: where the system has its counters.
    """
    try:
        zones = [zone for zone in sorted(folder.glob(_ZONES)) if (zone / "name").read_text().startswith(_PACKAGE)]
        counters = [_Counter(zone) for zone in zones]
    except (OSError, ValueError):
        return None

    def total() -> float | None:
        try:
            return sum(counter.millijoules() for counter in counters)
        except (OSError, ValueError):
            return None

    return total if counters else None


class _Counter:
    """One processor's, which begins anew at its highest value.

    :raises OSError: it may not be read, as by default nobody but root may.
    """

    def __init__(self, zone: Path) -> None:
        self._path = zone / "energy_uj"
        self._range = int((zone / "max_energy_range_uj").read_text())
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
    counter: EnergyCounter,
    *,
    finish: Callable[[], None],
    clock: Callable[[], float] = time.perf_counter,
) -> float | None:
    """Millijoules of one call: the mean of as many as fill a fifth of a second; None if the counter fails.

    :param finish: waits until what a call started is done.
    """
    before = counter()
    n, began = 0, clock()
    while n == 0 or clock() - began < _AT_LEAST_S:
        call()
        finish()
        n += 1
    after = counter()
    return None if before is None or after is None else (after - before) / n
