"""Figures of what was measured of each size: quality against cost, the grid, pairs of sizes."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from dynabert.report import tables
from dynabert.report.figure import (
    DARK,
    SHAPES,
    WIDE,
    Control,
    Figure,
    Option,
    TextTable,
    bare_axis,
    filled_where,
    heat_map,
    nominal_tips,
    number,
    param,
    spec_of,
    unless_one,
)
from dynabert.report.studies import OWN_RUN, Trainings, shown
from dynabert.report.tables import Table
from dynabert.studies.standings import Comparison
from dynabert.sweep import COSTS, CostName, Sweep

COST_TITLES: dict[str, str] = {
    "n_params": "Parameters (millions)",
    "flops": "Encoder FLOPs of a sequence (thousand millions)",
    "latency_ms": "Latency (ms)",
    "file_bytes": "Files (MB)",
    "peak_bytes": "Memory on top of the engine's own (MB)",
    "time_alone": "Time of an input, one by one (% of the full network's)",
    "time_together": "Time of an input, in batches of 32 (% of the full network's)",
}


def front_figure(sweeps: dict[str, Sweep], compared: Comparison | None = None) -> Figure:
    """The main metric against a cost, a line along each method's front.

    :param compared: the comparison that the sweeps of other methods are from.
    """
    untimed = [name for name, sweep in sweeps.items() if any(row.cost.latency_ms is None for row in sweep.rows)]
    times = None if compared is None else {shown(method): taken for method, taken in compared.times.items()}
    absent = f" No latency was measured of {', '.join(untimed)}" if 0 < len(untimed) < len(sweeps) else ""
    absent += ", but the time of validation rows." if absent and times else "." if absent else ""
    told = f"{absent}{_of(sweeps, None if compared is None else Trainings.of(compared))}"
    return _fronts("front", "Quality against cost", told, sweeps, COSTS, times)


def deployed_figure(sweeps: dict[str, Sweep]) -> Figure:
    """The same of the forms in which engines run the sizes, a line along the front of each engine and type.

    :param sweeps: by engine and dtype; all have times. Those of one shape are shown if all have one in common.
    """
    first, *others = map(_shapes, sweeps.values())
    if common := [shape for shape in first if all(shape in shapes for shapes in others)]:
        batch, seq = common[0]
        sweeps = {name: sweep.at(batch=batch, seq=seq) for name, sweep in sweeps.items()}
    how = "; ".join(f"{name}: {_timed(sweep)}" for name, sweep in sweeps.items())
    told = f" Metric and costs are those of what was written for the engine. Latency is that of {how}."
    return _fronts("deployed", "As deployed", told, sweeps, ("latency_ms", "file_bytes", "peak_bytes"))


def _shapes(sweep: Sweep) -> tuple[tuple[int, int], ...]:
    latency = sweep.context.latency
    return () if latency is None else latency.shapes


def _timed(sweep: Sweep) -> str:
    """At which shape, and where, a sweep was timed."""
    machine, (batch, seq) = sweep.context.machine, _shapes(sweep)[0]
    return f"{batch} x {seq} tokens by {machine.engine} on {machine.cpu}, threads: {machine.n_threads}"


def _fronts(
    name: str,
    title: str,
    told: str,
    sweeps: dict[str, Sweep],
    costs: Sequence[CostName],
    times: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
) -> Figure:
    """The main metric against each cost that was measured, a line along the front of each of several sweeps.

    :param told: the end of the caption.
    :param times: see `dynabert.report.tables.fronts`.
    """
    data, context = tables.fronts(sweeps, times), next(iter(sweeps.values())).context
    wanted = (*costs, *(() if times is None else tables.TIMES))
    known = [cost for cost in wanted if any(value is not None for value in data[cost])]
    methods = list(sweeps)
    params = {cost: {"cost": cost, "cost_title": COST_TITLES[cost]} for cost in known}
    controls = [Control("Cost", tuple(Option(COST_TITLES[cost], params[cost]) for cost in known))]
    if len(methods) > 1:
        controls.append(Control("Methods", tuple(Option(name, {"methods": name}) for name in methods), several=True))
    headers = ("method", "size", "layers", context.metric, "95 % interval", *(COST_TITLES[cost] for cost in known))
    rows = tuple(
        (
            *(row["method"], row["size"], row["layers"], f"{row['metric']:.4f}"),
            f"{row['low']:.3f} to {row['high']:.3f}",
            *(number(row[cost]) for cost in known),
        )
        for row in tables.rows_of(data)
    )
    return Figure(
        name=name,
        title=title,
        caption=f"Each point is one measured size, with the 95 % bootstrap interval of its {context.metric} over the "
        f"{context.n_rows:,} validation rows. Filled points and the line are the front: nothing else of the method is "
        f"as good for less. The dashed line is the teacher.{told}",
        spec=spec_of(_front_chart(methods, known, context.metric)),
        data={"front": data, "reference": {"metric": [context.reference], "text": ["teacher"]}},
        controls=tuple(controls),
        tables=(TextTable("All measured sizes", headers, rows),),
        images={f"{name}-{cost}": chosen for cost, chosen in params.items()},
    )


def _of(sweeps: dict[str, Sweep], trainings: Trainings | None) -> str:
    """What the methods of a comparison had for their training, and the run for its own."""
    if trainings is None:
        return ""
    first = f" Shown is seed {trainings.seeds[0]}." if len(trainings.seeds) > 1 else ""
    apart = f" {OWN_RUN} is the result of this folder, from a training of another length, rate or recipe."
    return f" Methods were compared with {trainings}.{first}{apart if OWN_RUN in sweeps else ''}"


def _front_chart(methods: list[str], costs: list[str], metric: str) -> alt.LayerChart | alt.FacetChart:
    # Costs and their titles are parameters: the title of an axis cannot be one, that of the chart can.
    by_method: dict[str, Any] = {
        "scale": alt.Scale(domain=methods),
        "sort": methods,
        "legend": alt.Legend(title=None, symbolOpacity=1),
    }
    colour, fill, shape = (
        alt.Color("method:N", **by_method),
        alt.Fill("method:N", **by_method),
        alt.Shape("method:N", **{**by_method, "scale": alt.Scale(domain=methods, range=list(SHAPES))}),
    )
    base = (
        alt.Chart(alt.NamedData("front"))
        .transform_filter("indexof(methods, datum.method) >= 0 && isValid(datum[cost])")
        .transform_calculate(x="datum[cost]", on_front="datum['front_' + cost]")
        .encode(x=alt.X("x:Q", title=None, scale=alt.Scale(zero=False, padding=12)), color=colour)
    )
    y = alt.Y("metric:Q", title=metric, scale=alt.Scale(zero=False))
    ends = (("metric", metric), ("low", "interval from"), ("high", "to"))
    tooltip = [
        *nominal_tips("method", "size", "layers"),
        *(alt.Tooltip(f"{name}:Q", title=title, format=".4f") for name, title in ends),
        *(alt.Tooltip(f"{cost}:Q", title=COST_TITLES[cost], format=",.4~g") for cost in costs),
    ]
    bars = base.mark_rule(opacity=0.4).encode(y=alt.Y("low:Q", title=metric), y2="high:Q")
    line = base.transform_filter("datum.on_front").mark_line(strokeWidth=1.5).encode(y=y, order="x:Q")
    points = base.mark_point(size=55, strokeWidth=1.5, opacity=1).encode(
        y=y, shape=shape, fill=fill, fillOpacity=filled_where("datum.on_front"), tooltip=tooltip
    )
    reference = alt.Chart(alt.NamedData("reference")).encode(y=y)
    named = reference.mark_text(align="left", dx=4, dy=-6, fontSize=11).encode(x=alt.value(0), text="text:N")
    first = costs[0]
    return (
        alt.layer(reference.mark_rule(strokeDash=[5, 4]), bars, line, points, named)
        .add_params(param("cost", first), param("cost_title", COST_TITLES[first]), param("methods", methods))
        .properties(
            **WIDE,
            height=340,
            title=alt.TitleParams(text=alt.expr("cost_title"), orient="bottom", anchor="middle", offset=8),
        )
    )


def grid_figure(sweep: Sweep) -> Figure | None:
    """The grid of widths and depths as a heat map; None where no size is of a grid."""
    data, measures = tables.grid(sweep), tables.measures(sweep)
    if not data:
        return None
    widths, depths = (sorted(dict.fromkeys(data[axis]), key=float, reverse=True) for axis in ("width", "depth"))
    chart = (
        heat_map(
            "grid",
            x=alt.X("depth:O", title="depth", sort=depths, axis=bare_axis(labelAngle=0, orient="top")),
            y=alt.Y("width:O", title="width", sort=widths, axis=bare_axis()),
            tooltip=[*nominal_tips("size", "layers"), alt.Tooltip("text:N", title="value")],
        )
        .add_params(param("measure", next(iter(measures))), param(DARK, False))
        .properties(**WIDE, height=44 * len(widths))
    )
    shown = {(row["measure"], row["width"], row["depth"]): row["text"] for row in tables.rows_of(data)}
    headers = ("width", *(f"depth {depth}" for depth in depths))
    return Figure(
        name="grid",
        title="Width and depth",
        caption="Darker (on a dark page, lighter) is better; the colours run from the worst to the best size. Widths "
        "are shares of heads and neurons, depths of layers.",
        spec=spec_of(chart),
        data={"grid": data},
        controls=(Control("Show", tuple(Option(text, {"measure": name}) for name, text in measures.items())),),
        tables=tuple(
            TextTable(
                text,
                headers,
                tuple((width, *(shown.get((name, width, depth), "") for depth in depths)) for width in widths),
            )
            for name, text in measures.items()
        ),
        images={f"grid-{name}": {"measure": name} for name in measures},
    )


_HOW_PAIRED = {
    True: "Agreement is the share of the validation rows with the same class. A flip is a row that the size of the "
    "column gets right and the size of the row gets wrong: below the diagonal, what is lost by going from a larger "
    "to a smaller.",
    False: "Agreement is Pearson's correlation of two sizes' scores on the validation rows, times 100.",
}


def pair_figure(data: Table) -> Figure:
    """How the predictions of each pair of sizes compare.

    :param data: see `tables.pairs`.
    """
    names = list(dict.fromkeys(data["smaller"]))
    measures = {name: text for name, text in tables.PAIRED.items() if name in data["measure"]}
    chart = (
        heat_map(
            "pairs",
            x=alt.X("larger:N", title=None, sort=names, axis=bare_axis(orient="top", labelAngle=-60)),
            y=alt.Y("smaller:N", title=None, sort=names, axis=bare_axis()),
            tooltip=[
                alt.Tooltip("smaller:N", title="row"),
                alt.Tooltip("larger:N", title="column"),
                alt.Tooltip("text:N", title="share, %"),
            ],
        )
        .add_params(param("measure", next(iter(measures))), param(DARK, False))
        .properties(**WIDE, height=26 * len(names))
    )
    return Figure(
        name="pairs",
        title="Agreement and flips between sizes",
        caption=_HOW_PAIRED["flips" in measures],
        spec=spec_of(chart),
        data={"pairs": data},
        controls=unless_one("Show", tuple(Option(text, {"measure": name}) for name, text in measures.items())),
        tables=tuple(
            TextTable(text, ("", *names), tuple((row, *values) for row, values in tables.matrix(data, name)))
            for name, text in measures.items()
        ),
        images={name: {"measure": name} for name in measures},
    )
