"""A sweep file that grows: rows of further sizes beside those that were measured in the same way. No torch."""

import logging
import shlex
from collections.abc import Callable
from pathlib import Path

from dynabert.errors import DynabertError
from dynabert.files import StrPath
from dynabert.measurement import LatencySettings, options_of
from dynabert.subnet import Subnet
from dynabert.sweep import Sweep

Fingerprint = Callable[[list[Subnet]], str]
"""Of some Subnets of a network on some rows, see `dynabert.measure.fingerprint_of`."""

log = logging.getLogger("dynabert")


def joined(path: Path, new: Sweep, fingerprint: Fingerprint, *, whole: bool, part_begins: bool) -> Sweep | None:
    """What a sweep file is to hold once more was measured; None where it is to stay as it is.

    A warning says what is lost, or why nothing was added.

    :param path: the file.
    :param new: what was measured now.
    :param fingerprint: that of some Subnets of the network, on the rows that it was measured on.
    :param whole: whether the new rows are the whole grid, which replaces what they cannot join.
    :param part_begins: whether less than the grid may be the first that is in the file.
    """
    again = f"measure the whole grid: `{measure_command(path.parent, new.context.latency)}`"
    if not path.exists():
        if whole or part_begins:
            return new
        log.warning("%s is not there, and begins with the whole grid; %s", path, again)
        return None
    try:
        earlier = Sweep.from_json(path)
        unlike = _unlike(earlier, new, fingerprint)
        if not unlike:
            subnets = dict.fromkeys(Subnet.parse(row.subnet) for row in (*earlier.rows, *new.rows))
            return earlier.joined(new, fingerprint=fingerprint(list(subnets)))
    except DynabertError as error:  # damaged, or of a later version
        earlier, unlike = None, str(error)
    if whole:
        if earlier is not None:
            _tell_lost(path, earlier, new)
        return new
    if earlier is not None and options_of(earlier.context.latency) != options_of(new.context.latency):
        names = ",".join(row.subnet for row in new.rows)
        again = f"use `{measure_command(path.parent, earlier.context.latency, subnets=names)}`, or {again}"
    log.warning("nothing was added to %s (%s); %s", path, unlike, again)
    return None


def _unlike(earlier: Sweep, new: Sweep, fingerprint: Fingerprint) -> str:
    """Why rows of two Sweeps cannot stand in one; empty where they can."""
    if differences := earlier.context.differences(new.context):
        return "; ".join(differences)
    subnets = [Subnet.parse(row.subnet) for row in earlier.rows]
    same = fingerprint(subnets) == earlier.context.fingerprint
    return "" if same else "it was measured with other weights or rows"


def _tell_lost(path: Path, earlier: Sweep, new: Sweep) -> None:
    """Say what is in an earlier Sweep alone."""
    shapes = [set() if sweep.context.latency is None else set(sweep.context.latency.shapes) for sweep in (earlier, new)]
    lost = [f"times at {batch} x {seq}" for batch, seq in sorted(shapes[0] - shapes[1])]
    if n_sizes := len({row.subnet for row in earlier.rows} - {row.subnet for row in new.rows}):
        lost.append(f"sizes outside the grid ({n_sizes})")
    if lost:
        how = measure_command(path.parent, earlier.context.latency)
        log.warning("%s was replaced and has lost %s; it was made by `%s`", path, ", ".join(lost), how)


def measure_command(out: StrPath, latency: LatencySettings | None, *, subnets: str = "") -> str:
    """The command that measures a run in a certain way.

    :param subnets: sizes, by commas; without, the whole grid.
    """
    words = ("dynabert measure", shlex.quote(str(out)), f"--subnets {subnets}" if subnets else "", options_of(latency))
    return " ".join(filter(None, words))
