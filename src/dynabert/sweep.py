"""What was measured of several Subnets, and the choice of one: plain values and a JSON file. No torch."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from io import StringIO
from types import UnionType
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from dynabert.choice import COSTS, Budget, CostName, choose, front
from dynabert.errors import ModelFileError, SettingError
from dynabert.files import StrPath, read_json, write_json
from dynabert.measurement import (
    ENGINE_DTYPES,
    Agreement,
    Context,
    Cost,
    LatencySettings,
    Machine,
    Measurement,
    Quality,
    Timing,
    listed,
)

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "COSTS",
    "ENGINE_DTYPES",
    "Context",
    "Cost",
    "CostName",
    "LatencySettings",
    "Machine",
    "Measurement",
    "Quality",
    "Sweep",
    "Timing",
    "plain_text",
]

FORMAT_VERSION = 5

WIDE_SPREAD = 0.2
"""Interquartile range, as a share of the median, from which on a time is not to be relied on."""

_SHAPES_ABREAST = 5
"""Shapes whose times fit beside each other in 120 columns."""


@dataclass(frozen=True)
class Sweep:
    """Measured Subnets, and what they have in common.

    :raises SettingError: no rows.
    """

    rows: tuple[Measurement, ...]
    context: Context

    def __post_init__(self) -> None:
        if not self.rows:
            raise SettingError("a Sweep needs at least one row; measure at least one Subnet")

    def front(self, cost: CostName = "n_params") -> "Sweep":
        """The rows that nothing dominates, in their order: no other row is better in one and no worse in the other.

        :param cost: what is weighed against the main metric.
        :raises SettingError: an unknown cost, or one that was not measured.
        """
        return replace(self, rows=front(self.rows, cost))

    def at(self, *, batch: int | None = None, seq: int | None = None) -> "Sweep":
        """The same with the latency of another measured shape as the one that counts.

        :param batch: sequences in a call; by default the first that was measured.
        :param seq: tokens of each; likewise.
        :raises SettingError: a shape that was not measured.
        """
        latency = self.context.latency
        if latency is None:
            raise SettingError("this Sweep has no latency; measure again with it")
        wanted = (latency.batch[0] if batch is None else batch, latency.seq[0] if seq is None else seq)
        if wanted == latency.shapes[0]:
            return self
        if wanted not in latency.shapes:
            both = latency.with_shape(*wanted)  # the measured ones stay
            raise SettingError(
                f"latency of {wanted[0]} x {wanted[1]} tokens was not measured, but of batch {listed(latency.batch)} "
                f"at seq {listed(latency.seq)}; measure again with {both.options}"
            )
        place = latency.shapes.index(wanted)
        settings = replace(latency, batch=wanted[:1], seq=wanted[1:])
        rows = tuple(
            replace(row, cost=replace(row.cost, latency_ms=timing.median_ms, timings=(timing,)))
            for row in self.rows
            for timing in (row.cost.timings[place],)
        )
        return Sweep(rows, replace(self.context, latency=settings))

    def pick(
        self,
        *,
        max_params: float | None = None,
        max_flops: float | None = None,
        max_latency_ms: float | None = None,
        min_throughput: float | None = None,
        max_file_mb: float | None = None,
        max_memory_mb: float | None = None,
        min_metric: float | None = None,
        must_load: str | None = None,
    ) -> Measurement:
        """The best Subnet within some limits: the highest main metric, and the cheapest where several have it.

        With `min_metric` and no limit of a cost it is the cheapest Subnet that reaches it. For the parameters see
        `dynabert.choice.Budget`; latency and throughput are those of the first measured shape, or of `at`.

        :raises SettingError: nothing fits, or a cost that was not measured; the message names the nearest row.
        """
        return choose(
            self.rows,
            Budget(
                max_params=max_params,
                max_flops=max_flops,
                max_latency_ms=max_latency_ms,
                min_throughput=min_throughput,
                max_file_mb=max_file_mb,
                max_memory_mb=max_memory_mb,
                min_metric=min_metric,
                must_load=must_load,
            ),
            batch=1 if self.context.latency is None else self.context.latency.batch[0],
        )

    def joined(self, newer: "Sweep", *, fingerprint: str) -> "Sweep":
        """With the rows of a newer Sweep: in the place of those of the same Subnets, the others at the end.

        :param newer: measured in the same way, see `dynabert.measurement.Context.differences`.
        :param fingerprint: of all rows together.
        """
        rows = {row.subnet: row for row in (*self.rows, *newer.rows)}
        return Sweep(tuple(rows.values()), replace(newer.context, fingerprint=fingerprint))

    def to_json(self, path: StrPath) -> None:
        """Write to a JSON file, atomically.

        :raises StorageError: disk full, no permission, or an I/O error.
        """
        write_json(path, self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """What the JSON file holds: plain values, rows flat."""
        rows = [row.to_dict() for row in self.rows]
        return {"format_version": FORMAT_VERSION, "context": asdict(self.context), "rows": rows}

    @classmethod
    def from_json(cls, path: StrPath) -> "Sweep":
        """Read what `to_json` wrote.

        :raises ModelFileError: a file that is missing, damaged, of a later version, or something else.
        """
        return cls.from_dict(read_json(path), what=str(path))

    @classmethod
    def from_dict(cls, saved: Any, *, what: str) -> "Sweep":  # noqa: ANN401 (whatever a file holds)
        """What `to_dict` gave.

        :param what: it was read from, for the message.
        :raises ModelFileError: of a later version, or something else.
        """
        version = saved.get("format_version") if isinstance(saved, dict) else None
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise ModelFileError(f"{what} has format {version}, newer than {FORMAT_VERSION}: update dynabert")
        try:
            _check_keys(saved, {"format_version", "context", "rows"}, "the file")
            if version not in (*_LATER, FORMAT_VERSION) or not isinstance(saved["rows"], list):
                raise TypeError("no format_version and list of rows")
            for earlier in range(version, FORMAT_VERSION):
                saved = _LATER[earlier](saved)
            context = Context(**_fields(_hints(Context), saved["context"], "context"))
            rows = tuple(_parse_row(row, i) for i, row in enumerate(saved["rows"]))
            if any(next(iter(row.quality.metrics), None) != context.metric for row in rows):
                raise TypeError(f"a row whose main metric is not {context.metric}")
            return cls(rows, context)
        except (TypeError, KeyError, ValueError) as error:
            raise ModelFileError(f"{what} is not a Sweep ({error}); measure again") from error

    def to_table(self) -> "Table":
        """The rows as a table of rich, metrics as fractions."""
        from rich import box
        from rich.table import Table

        context, latency, machine = self.context, self.context.latency, self.context.machine
        title = f"{context.task}: {context.metric} on {context.n_rows} rows, reference {context.reference:.4f}"
        caption = f"FLOPs at {context.seq_len} tokens; {machine.cpu}, torch {machine.torch}"
        if latency is not None:
            caption += f"; latency: {machine.engine or latency.engine} {latency.dtype}, "
            caption += f"{latency.batch[0]} x {latency.seq[0]} tokens"
            caption += f", {machine.n_threads} threads, median of {latency.repeats}"
        table = Table(title=title, caption=caption, box=box.SIMPLE)
        table.add_column("Subnet")
        agreement = context.agreement
        told = agreement.name if agreement.is_correlation else f"{agreement.name} %"
        headers = ("layers", context.metric, "95 %", "kept %", told, "params M", "GFLOPs", "latency ms")
        for header in headers:
            table.add_column(header, justify="right", no_wrap=True)
        for row in self.rows:
            table.add_row(*_cells(row, agreement))
        return table

    def to_cost_tables(self) -> "list[Table]":
        """Times at every shape, and what the deployed form takes; none where one shape was timed in PyTorch alone."""
        from rich import box
        from rich.table import Table

        latency, machine = self.context.latency, self.context.machine
        timed = latency is not None and all(row.cost.timings for row in self.rows)
        if latency is None or not timed or (len(latency.shapes) == 1 and not machine.engine):
            return []
        places, tables = range(len(latency.shapes)), []
        for start in places[::_SHAPES_ABREAST]:
            shown = places[start : start + _SHAPES_ABREAST]
            table = Table(title="milliseconds of a call: median, and 95 % within", box=box.SIMPLE)
            table.add_column("Subnet")
            headers = [f"{batch} x {seq}" for batch, seq in (latency.shapes[place] for place in shown)]
            for header in (*headers, *(_SIZES if start == 0 else ())):
                table.add_column(header, justify="right", no_wrap=True)
            for row in self.rows:
                times = [
                    f"{row.cost.timings[place].median_ms:.2f} {row.cost.timings[place].p95_ms:.2f}" for place in shown
                ]
                table.add_row(row.subnet, *times, *(_sizes(row.cost) if start == 0 else ()))
            tables.append(table)
        if any(timing.energy_mj is not None for row in self.rows for timing in row.cost.timings):
            tables.append(self._energy_table())
        return tables

    def _energy_table(self) -> "Table":
        from rich import box
        from rich.table import Table

        table = Table(title="millijoules of a call, all that the processor took meanwhile", box=box.SIMPLE)
        table.add_column("Subnet", no_wrap=True)
        for timing in self.rows[0].cost.timings:
            table.add_column(f"{timing.batch} x {timing.seq}", justify="right")
        for row in self.rows:
            energies = (timing.energy_mj for timing in row.cost.timings)
            table.add_row(row.subnet, *("-" if energy is None else f"{energy:.3g}" for energy in energies))
        return table

    def doubt(self) -> str:
        """A line on times that spread too widely to be relied on; empty where none does."""
        times = [(timing, row.subnet) for row in self.rows for timing in row.cost.timings]
        wide = [(timing.spread, timing, subnet) for timing, subnet in times if timing.spread > WIDE_SPREAD]
        if not wide:
            return ""
        spread, timing, subnet = max(wide, key=lambda one: one[0])
        return (
            f"{len(wide)} of {len(times)} times spread over more than {WIDE_SPREAD:.0%} of their median (most: "
            f"{subnet} at {timing.batch} x {timing.seq}, {spread:.0%}); measure again on an idle machine, or with more "
            f"--repeats"
        )

    def table(self) -> str:
        """The rows as lines of plain text: one table, those of `to_cost_tables`, and the line of `doubt`."""
        text = "".join(map(plain_text, (self.to_table(), *self.to_cost_tables())))
        return text + (f"{doubt}\n" if (doubt := self.doubt()) else "")


_ANY_WIDTH = 10_000
"""Columns in which every table has room, for measuring how many it needs."""


def plain_text(table: "Table") -> str:
    """A table as lines of plain text, 120 columns wide, or as many as its cells need."""
    from rich.console import Console

    needed = Console(file=StringIO(), width=_ANY_WIDTH).measure(table).maximum
    console = Console(file=StringIO(), width=max(120, needed), color_system=None)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def _cells(row: Measurement, agreement: Agreement) -> tuple[str, ...]:
    quality, cost = row.quality, row.cost
    return (
        row.subnet,
        f"{row.n_layers:.3g}/{row.of_layers}",
        f"{row.metric:.4f}",
        f"{quality.metric_low:.3f} to {quality.metric_high:.3f}",
        "-" if quality.kept is None else f"{100 * quality.kept:.1f}",
        agreement.text(quality.agreement, ""),
        f"{cost.n_params / 1e6:.1f}",
        f"{cost.flops / 1e9:.2f}",
        "-" if cost.latency_ms is None else f"{cost.latency_ms:.2f}",
    )


_SIZES = ("sequences/s", "MB", "memory MB")


def _sizes(cost: Cost) -> tuple[str, ...]:
    """What `_SIZES` says: throughput at the first shape, files, memory."""
    first = cost.timings[0]
    bytes_of = ("-" if size is None else f"{size / 1e6:.1f}" for size in (cost.file_bytes, cost.peak_bytes))
    return (f"{1e3 * first.batch / first.median_ms:.0f}", *bytes_of)


def _parse_row(saved: Any, place: int) -> Measurement:  # noqa: ANN401 (whatever the file holds)
    """A row of the file: the fields of `Measurement` with those of its two groups in their stead."""
    kinds = {**_hints(Measurement), **_hints(Quality), **_hints(Cost)}
    del kinds["quality"], kinds["cost"]
    values = _fields(kinds, saved, f"row {place}")
    quality = Quality(**{name: values.pop(name) for name in _hints(Quality)})
    cost = Cost(**{name: values.pop(name) for name in _hints(Cost)})
    return Measurement(**values, quality=quality, cost=cost)


def _fields(kinds: Mapping[str, Any], saved: Any, what: str) -> dict[str, Any]:  # noqa: ANN401 (whatever the file holds)
    """The values of a dictionary, which has exactly these names, each of exactly its type."""
    _check_keys(saved, set(kinds), what)
    return {name: _value(saved[name], kind, f"{what}: {name}") for name, kind in kinds.items()}


def _value(saved: Any, kind: Any, what: str) -> Any:  # noqa: ANN401 (a value of `kind`)
    if get_origin(kind) is UnionType:
        if saved is None:
            return None
        kind = get_args(kind)[0]
    if hasattr(kind, "__dataclass_fields__"):
        return kind(**_fields(_hints(kind), saved, what))
    if get_origin(kind) is tuple:
        if not isinstance(saved, (list, tuple)):
            raise TypeError(f"{what} is not a list")
        return tuple(_value(item, get_args(kind)[0], f"{what}[{place}]") for place, item in enumerate(saved))
    if get_origin(kind) is dict:
        if not isinstance(saved, dict) or not saved:
            raise TypeError(f"{what} is not a table of numbers")
        return {name: _value(number, float, what) for name, number in saved.items()}
    if kind is float and type(saved) is int:
        saved = float(saved)
    if type(saved) is not kind or (kind is float and not math.isfinite(saved)):
        raise TypeError(f"{what} is not of type {kind.__name__}")
    return saved


def _of_version_2(saved: dict[str, Any]) -> dict[str, Any]:
    """What the first version said, in the words of this one."""
    context, rows = dict(saved["context"]), [dict(row) for row in saved["rows"]]
    context["machine"] = {**context["machine"], "n_cores": None, "engine": ""}
    if (latency := context["latency"]) is not None:
        lists = {name: [latency[name]] for name in ("batch", "seq")}
        context["latency"] = {**latency, **lists, "n_threads": None}
    added: dict[str, Any] = {"timings": [], "file_bytes": None, "peak_bytes": None}
    return {**saved, "context": context, "rows": [{**row, **added} for row in rows]}


def _of_version_3(saved: dict[str, Any]) -> dict[str, Any]:
    """What the second version said, in the words of this one: FLOPs were at the first length of the latency."""
    latency = saved["context"]["latency"]
    lengths = [] if latency is None else latency["seq"]
    return {**saved, "context": {**saved["context"], "seq_len": next(iter(lengths), 128)}}


def _of_version_4(saved: dict[str, Any]) -> dict[str, Any]:
    """What the third version said, in the words of this one: energy was not measured."""
    rows = [{**row, "timings": [{**timing, "energy_mj": None} for timing in row["timings"]]} for row in saved["rows"]]
    return {**saved, "rows": rows}


def _of_version_5(saved: dict[str, Any]) -> dict[str, Any]:
    """What the fourth version said, in the words of this one: the instructions of the processor were not kept.

    By them int8 is written in one way or another (`dynabert.processor`), so that it is not taken to be as it is now.
    """
    context = saved["context"]
    known = "not kept" if str(context["precision"]).startswith("int8") else None
    return {**saved, "context": {**context, "machine": {**context["machine"], "instructions": known}}}


_LATER = {1: _of_version_2, 2: _of_version_3, 3: _of_version_4, 4: _of_version_5}
"""By the version of a file: what makes the next one of it."""


def _check_keys(saved: Any, names: set[str], what: str) -> None:  # noqa: ANN401 (whatever the file holds)
    if not isinstance(saved, dict):
        raise TypeError(f"{what} is not a table")
    if different := sorted(names ^ set(saved)):
        raise TypeError(f"{what} lacks or should not have {', '.join(different)}")


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)
