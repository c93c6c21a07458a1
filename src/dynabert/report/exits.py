"""The figure of what is saved where each input leaves as soon as its answer is sure enough: early exit and cascades."""

from collections.abc import Iterator
from typing import Any

import altair as alt

from dynabert.exits import CONFIDENCE
from dynabert.report import tables
from dynabert.report.figure import (
    COLOURS,
    SHAPES,
    WIDE,
    Figure,
    TextTable,
    filled_where,
    nominal_tips,
    number,
    spec_of,
)
from dynabert.studies.size_exit import ExitPoint, SizeExit
from dynabert.subnet import Subnet

KINDS = ("size alone", "size with exits", "cascade")
ALONE, WITH_EXITS, CASCADE = KINDS

_COSTS = {"flops": "FLOPs, %", "alone": "time one by one, %", "together": "time in batches of 32, %"}


def exit_figure(exits: SizeExit | None, cascades: SizeExit | None) -> Figure | None:
    """The main metric against FLOPs; None where there is neither study.

    :param exits: of sizes with ramps.
    """
    studies = [study for study in (exits, cascades) if study is not None]
    if not studies:
        return None
    points = [
        *(point for study in studies for point in _points(study, ALONE)),
        *(() if exits is None else _points(exits, WITH_EXITS)),
        *(() if cascades is None else _points(cascades, CASCADE)),
    ]
    rows = {(kind, point.subnet, point.asked): _row(kind, point) for kind, point in points}
    data, metric = tables.table(rows.values()), studies[0].metric
    full = {(study.full, _largest(study)) for study in studies}
    reference = tables.table({"metric": tables.digits(value, 5), "text": name} for value, name in sorted(full))
    whole = " and ".join(sorted({name for _, name in full}))
    return Figure(
        name="exits",
        title="Easy inputs for less",
        caption="What is saved where an input gets its answer as soon as that is sure enough: from a size with exits "
        "after some of its layers, or in a cascade from a small size, which leaves the rest to a larger one. "
        f"Thresholds are calibrated on {_rows_of(studies)} select rows, so that answers agree with those of the "
        f"{whole} (dashed) to the share that is asked for, with {CONFIDENCE:.0%} confidence; the rest is what the "
        "validation rows then say, FLOPs those of an input of 128 tokens. Points of one size are joined; a ring is the "
        f"size alone.{_ramps_of(exits)}{_unreached(studies)}",
        spec=spec_of(_chart(list(dict.fromkeys(data["kind"])), metric, whole)),
        data={"exits": data, "reference": reference},
        controls=(),
        tables=(_numbers(data, metric),),
        images={"exits": {}},
    )


def _points(study: SizeExit, kind: str) -> Iterator[tuple[str, ExitPoint]]:
    """The points of a kind: a size alone, or what the study made of it."""
    return ((kind, point) for point in study.points if (point.asked is None) == (kind == ALONE))


def _row(kind: str, point: ExitPoint) -> dict[str, Any]:
    costs = dict(zip(_COSTS, (point.flops, *point.time), strict=True))
    return {
        "kind": kind,
        "size": point.subnet,
        "asked": "nothing" if point.asked is None else f"{100 * point.asked:.4g}%",
        "agreement": f"{point.agreement:.1%}",
        "threshold": number(point.threshold),
        "layers": f"{point.n_layers:.2f}",
        "metric": tables.digits(point.metric, 5),
        **{name: tables.digits(100 * share) for name, share in costs.items()},
    }


def _largest(study: SizeExit) -> str:
    return "full network" if study.largest == Subnet().name else f"largest size {study.largest}"


def _rows_of(studies: list[SizeExit]) -> str:
    return " and ".join(f"{n:,}" for n in dict.fromkeys(study.n_select for study in studies))


def _ramps_of(exits: SizeExit | None) -> str:
    return f" Exits are {exits.ramps} ramps." if exits is not None and exits.ramps else ""


def _unreached(studies: list[SizeExit]) -> str:
    missed = ", ".join(f"{100 * share:.4g}% by {name}" for study in studies for name, share in study.unreached)
    few = "".join(dict.fromkeys(study.too_few for study in studies))
    return f" Not shown by those rows: {missed}{few}." if missed else ""


def _chart(kinds: list[str], metric: str, whole: str) -> alt.LayerChart | alt.FacetChart:
    places = [KINDS.index(kind) for kind in kinds]
    colours, shapes = ([looks[place] for place in places] for looks in (COLOURS, SHAPES))
    legend = alt.Legend(title=None, symbolOpacity=1)
    by_kind: dict[str, Any] = {"sort": kinds, "scale": alt.Scale(domain=kinds, range=colours), "legend": legend}
    colour, fill = alt.Color("kind:N", **by_kind), alt.Fill("kind:N", **by_kind)
    shape = alt.Shape("kind:N", **{**by_kind, "scale": alt.Scale(domain=kinds, range=shapes)})
    y = alt.Y("metric:Q", title=f"{metric} x 100", scale=alt.Scale(zero=False, padding=10))
    x = alt.X("flops:Q", title=f"FLOPs, % of the {whole}'s", scale=alt.Scale(zero=False, padding=12))
    base = alt.Chart(alt.NamedData("exits")).encode(x=x, y=y, color=colour)
    tooltip = [
        *nominal_tips("kind", "size"),
        alt.Tooltip("asked:N", title="agreement asked for"),
        alt.Tooltip("agreement:N", title="agreement found"),
        alt.Tooltip("metric:Q", title=f"{metric} x 100", format=".2f"),
        *nominal_tips("layers"),
        *(alt.Tooltip(f"{name}:Q", title=title, format=".1f") for name, title in _COSTS.items()),
    ]
    joined = base.mark_line(strokeWidth=1.2, opacity=0.5).encode(detail="size:N", order="flops:Q")
    # A cascade that asks for little is the size alone: with a ring around it, both are seen.
    points = base.mark_point(strokeWidth=1.5, opacity=1).encode(
        shape=shape,
        fill=fill,
        fillOpacity=filled_where(f"datum.kind != '{ALONE}'"),
        size=alt.condition(f"datum.kind == '{ALONE}'", alt.value(150), alt.value(60)),
        tooltip=tooltip,
    )
    reference = alt.Chart(alt.NamedData("reference")).encode(y=y)
    named = reference.mark_text(align="left", dx=4, dy=-6, fontSize=11).encode(x=alt.value(0), text="text:N")
    return alt.layer(reference.mark_rule(strokeDash=[5, 4]), joined, points, named).properties(**WIDE, height=320)


def _numbers(data: tables.Table, metric: str) -> TextTable:
    headers = ("size", "kind", "agreement asked for", "found", "threshold", f"{metric} x 100", "layers")
    rows = tuple(
        (
            *(row[name] for name in ("size", "kind", "asked", "agreement", "threshold")),
            *(f"{row['metric']:.2f}", row["layers"], *(f"{row[cost]:.1f}" for cost in _COSTS)),
        )
        for row in tables.rows_of(data)
    )
    return TextTable("All points", (*headers, *_COSTS.values()), rows)
