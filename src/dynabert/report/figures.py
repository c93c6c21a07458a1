"""The figures of a report: charts of Altair, what can be chosen in them, and the same numbers as tables.

A chart names its data, which the page holds once by column, and has a parameter for everything that can be chosen. An
image is drawn from the same chart.
"""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import altair as alt
import vl_convert

from dynabert.report import tables
from dynabert.report.data import MEAN, OWN_METHOD, Contents
from dynabert.report.network import Attention
from dynabert.report.tables import Table
from dynabert.sweep import COSTS, CostName, Sweep

COLOURS = ("#3b82c4", "#d0682a", "#2a9160", "#a55fc4", "#cc4258", "#8f7a12", "#16879a", "#7c828a")
"""Told apart on white and on black, and by most of those who see colours otherwise."""

RAMPS = {False: ["#eef4fb", "#a8cdea", "#4a95cc", "#08306b"], True: ["#1c2530", "#27577f", "#4fa3d9", "#d6ecff"]}
"""From the lowest to the highest value, on a light and on a dark page."""

COST_TITLES: dict[CostName, str] = {
    "n_params": "Parameters (millions)",
    "flops": "Encoder FLOPs of one sequence (thousand millions)",
    "latency_ms": "Latency (ms)",
}
IMAGE_WIDTH = 520


@dataclass(frozen=True)
class Option:
    """Something to choose: its text, the parameters it sets, and the heading it stands under."""

    text: str
    params: dict[str, Any]
    group: str = ""


@dataclass(frozen=True)
class Control:
    """A choice; of `several` options each is on or off, and their one parameter is the list of those that are on."""

    label: str
    options: tuple[Option, ...]
    several: bool = False


@dataclass(frozen=True)
class TextTable:
    """Numbers of a figure to read, as text."""

    caption: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Figure:
    """A figure.

    :param name: identifies it.
    :param caption: how it is read.
    :param spec: Vega-Lite.
    :param data: by the names that the chart has for them.
    :param images: file names of its images, each with the parameters it sets.
    """

    name: str
    title: str
    caption: str
    spec: dict[str, Any]
    data: dict[str, Table]
    controls: tuple[Control, ...]
    tables: tuple[TextTable, ...]
    images: dict[str, dict[str, Any]]


def figures_of(contents: Contents) -> tuple[Figure, ...]:
    """The figures for which there are data, in the order of the page."""
    return tuple(figure for figure in _figures(contents) if figure is not None)


def _figures(contents: Contents) -> Iterator[Figure | None]:
    predictions, attention = contents.network
    if contents.own is not None:
        yield front_figure(contents.sweeps)
        yield grid_figure(contents.own)
    if contents.ablations:
        yield ablation_figure(contents)
    yield curve_figure(contents)
    yield score_figure(contents)
    if contents.importance is not None:
        yield head_figure(contents.importance.heads.double().numpy())
        yield neuron_figure(contents.importance.neurons.double().numpy())
    if attention is not None:
        yield attention_figure(attention)
    if predictions is not None:
        yield pair_figure(tables.pairs(predictions.labels, predictions.logits))


def theme(*, dark: bool, font: str = "sans-serif") -> dict[str, Any]:
    """The Vega configuration of a light or a dark page."""
    ink, faint, line = ("#e6e8eb", "#aab1ba", "#3a424c") if dark else ("#1f2328", "#57606a", "#d8dee4")
    axis = {"labelColor": faint, "titleColor": ink, "domainColor": line, "gridColor": line, "tickColor": line}
    return {
        "background": "transparent",
        "font": font,
        "axis": {**axis, "titleFontWeight": 500, "gridOpacity": 0.6},
        "legend": {"labelColor": ink, "titleColor": faint, "titleFontWeight": 500, "symbolStrokeWidth": 2},
        "title": {"color": ink, "fontWeight": 500, "fontSize": 11},
        "header": {"labelColor": ink, "titleColor": ink},
        "text": {"color": ink},
        "rule": {"color": faint},
        "view": {"stroke": None},
        "range": {"category": list(COLOURS), "heatmap": RAMPS[dark], "ramp": RAMPS[dark]},
    }


def image(figure: Figure, name: str, kind: Literal["svg", "png"]) -> bytes:
    """A figure as a file, on white.

    :param name: one of its images.
    :param kind: ``svg``, or ``png`` at twice the size.
    """
    spec = copy.deepcopy(figure.spec)
    for param in spec.get("params", ()):
        param["value"] = figure.images[name].get(param["name"], param.get("value"))
    spec["width"] = IMAGE_WIDTH if spec.get("width") == "container" else spec.get("width")
    spec["datasets"] = {key: tables.rows_of(columns) for key, columns in figure.data.items()}
    config = {**theme(dark=False), "background": "white"}
    if kind == "svg":
        return vl_convert.vegalite_to_svg(spec, vl_version=vega_lite_version(), config=config).encode()
    return vl_convert.vegalite_to_png(spec, vl_version=vega_lite_version(), config=config, scale=2)


def vega_lite_version() -> str:
    """The version of Vega-Lite that the charts are written for, as ``6.1``."""
    return ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])


def _param(name: str, value: Any) -> alt.Parameter:  # noqa: ANN401 (any JSON value)
    return alt.param(name=name, value=value)


DARK = "dark"
"""The parameter that says whether the page is dark: text on a heat map is light or dark by it."""


def _heat(data: str, *, x: alt.X, y: alt.Y, tooltip: list[alt.Tooltip], test: str = "true") -> alt.LayerChart:
    """A heat map whose cells are written in: columns share (in [0, 1]) and text."""
    base = alt.Chart(alt.NamedData(data)).transform_filter(test).encode(x=x, y=y, tooltip=tooltip)
    cells = base.mark_rect(stroke=None).encode(
        alt.Color("share:Q", scale=alt.Scale(domain=[0, 1]), legend=None, title=None)
    )
    on_strong = "(datum.share > 0.5) != dark"
    texts = base.mark_text(fontSize=alt.expr("max(7, min(12, bandwidth('x') / 3.2))")).encode(
        text="text:N", color=alt.condition(on_strong, alt.value("#ffffff"), alt.value("#101418"))
    )
    return alt.layer(cells, texts)


def _axis(**options: Any) -> alt.Axis:  # noqa: ANN401 (options of Axis)
    return alt.Axis(ticks=False, domain=False, grid=False, **options)


def front_figure(sweeps: dict[str, Sweep]) -> Figure:
    """The main metric against a cost, a line along each method's front."""
    data, context = tables.fronts(sweeps), sweeps[OWN_METHOD].context
    costs = [cost for cost in COSTS if any(value is not None for value in data[cost])]
    methods = list(sweeps)
    first: CostName = "n_params"
    base = (
        alt.Chart(alt.NamedData("front"))
        .transform_filter("indexof(methods, datum.method) >= 0 && isValid(datum[cost])")
        .transform_calculate(x="datum[cost]", on_front="datum['front_' + cost]")
        .encode(
            x=alt.X("x:Q", title=None, scale=alt.Scale(zero=False, nice=True, padding=12)),
            color=alt.Color("method:N", title=None, scale=alt.Scale(domain=methods), sort=methods),
        )
    )
    y = alt.Y("metric:Q", title=context.metric, scale=alt.Scale(zero=False))
    tooltip = [
        *(alt.Tooltip(f"{name}:N", title=name) for name in ("method", "size", "layers")),
        *(alt.Tooltip(f"{name}:Q", title=title, format=".4f") for name, title in _ends(context.metric)),
        *(alt.Tooltip(f"{cost}:Q", title=COST_TITLES[cost], format=",.4~g") for cost in costs),
    ]
    bars = base.mark_rule(opacity=0.35).encode(y=alt.Y("low:Q", title=context.metric), y2="high:Q")
    line = base.transform_filter("datum.on_front").mark_line(strokeWidth=1.5).encode(y=y, order="x:Q")
    fill = alt.condition("datum.on_front", alt.value(1.0), alt.value(0.0))
    points = base.mark_point(filled=True, size=55, strokeWidth=1.5, fillOpacity=1, strokeOpacity=1).encode(
        y=y, shape=alt.Shape("method:N", title=None, sort=methods), fillOpacity=fill, tooltip=tooltip
    )
    reference = alt.Chart(alt.NamedData("reference")).mark_rule(strokeDash=[5, 4]).encode(y=y)
    named = reference.mark_text(align="left", dx=4, dy=-6, fontSize=11).encode(y=y, x=alt.value(0), text="text:N")
    chart = (
        alt.layer(reference, bars, line, points, named)
        .add_params(
            _param("cost", first), _param("cost_title", COST_TITLES[first]), _param("methods", methods)
        )
        .properties(
            width="container",
            height=340,
            title=alt.TitleParams(text=alt.expr("cost_title"), orient="bottom", anchor="middle", offset=8),
        )
    )
    options = {cost: {"cost": cost, "cost_title": COST_TITLES[cost]} for cost in costs}
    controls = [Control("Cost", tuple(Option(COST_TITLES[cost], params) for cost, params in options.items()))]
    if len(methods) > 1:
        controls.append(Control("Methods", tuple(Option(name, {"methods": name}) for name in methods), several=True))
    rows = tuple(
        (
            *(row["method"], row["size"], row["layers"], f"{row['metric']:.4f}"),
            f"{row['low']:.3f} to {row['high']:.3f}",
            *(_number(row[cost]) for cost in costs),
        )
        for row in tables.rows_of(data)
    )
    headers = ("method", "size", "layers", context.metric, "95 % interval", *(COST_TITLES[cost] for cost in costs))
    return Figure(
        name="front",
        title="Quality against cost",
        caption=f"Each point is one measured size, with the 95 % bootstrap interval of its {context.metric} over the "
        f"{context.n_rows} validation rows. Filled points and the line are the front: nothing else of the method is "
        "as good for less. The dashed line is the teacher.",
        spec=_spec(chart),
        data={"front": data, "reference": {"metric": [context.reference], "text": ["teacher"]}},
        controls=tuple(controls),
        tables=(TextTable("All measured sizes", headers, rows),),
        images={f"front-{cost}": params for cost, params in options.items()},
    )


def _ends(metric: str) -> Iterable[tuple[str, str]]:
    return (("metric", metric), ("low", "interval from"), ("high", "to"))


def grid_figure(sweep: Sweep) -> Figure | None:
    """The grid of widths and depths as a heat map."""
    data, measures = tables.grid(sweep), tables.measures(sweep)
    if not data:
        return None
    widths, depths = (list(dict.fromkeys(sorted(data[axis], key=float, reverse=True))) for axis in ("width", "depth"))
    first = next(iter(measures))
    tooltip = [alt.Tooltip(f"{name}:N", title=name) for name in ("size", "layers")]
    chart = (
        _heat(
            "grid",
            x=alt.X("depth:O", title="depth", sort=depths, axis=_axis(labelAngle=0, orient="top")),
            y=alt.Y("width:O", title="width", sort=widths, axis=_axis()),
            tooltip=[*tooltip, alt.Tooltip("text:N", title="value")],
            test="datum.measure == measure",
        )
        .add_params(_param("measure", first), _param(DARK, False))
        .properties(width="container", height={"step": 44})
    )
    shown = {(row["measure"], row["width"], row["depth"]): row["text"] for row in tables.rows_of(data)}
    rows = {
        measure: tuple((width, *(shown.get((measure, width, depth), "") for depth in depths)) for width in widths)
        for measure in measures
    }
    return Figure(
        name="grid",
        title="Width × depth",
        caption="Darker (on a dark page, lighter) is better; the colours run from the worst to the best size. Widths are "
        "shares of heads and neurons, depths of layers.",
        spec=_spec(chart),
        data={"grid": data},
        controls=(Control("Show", tuple(Option(text, {"measure": name}) for name, text in measures.items())),),
        tables=tuple(
            TextTable(measures[measure], ("width", *(f"depth {depth}" for depth in depths)), lines)
            for measure, lines in rows.items()
        ),
        images={f"grid-{measure}": {"measure": measure} for measure in measures},
    )


def ablation_figure(contents: Contents) -> Figure:
    """What each variant changes."""
    rows = [{**vars(row), "name": f"{row.factor}: {row.variant}"} for row in contents.ablations]
    data = tables.table(rows)
    corners = sorted(dict.fromkeys(data["corner"]), key=lambda corner: corner != MEAN)
    base = alt.Chart(alt.NamedData("ablations")).transform_filter("datum.corner == corner")
    y = alt.Y("name:N", title=None, sort=list(dict.fromkeys(data["name"])), axis=_axis(labelLimit=170))
    tooltip = [
        *(alt.Tooltip(f"{name}:N", title=name) for name in ("factor", "variant", "corner")),
        *(alt.Tooltip(f"{name}:Q", title=name, format="+.2f") for name in ("difference", "low", "high")),
    ]
    colour = alt.Color("factor:N", title=None, legend=None)
    title = "difference of the main metric, points"
    bars = base.mark_rule(strokeWidth=2).encode(alt.X("low:Q", title=title), y=y, x2="high:Q", color=colour)
    points = base.mark_point(filled=True, size=70, opacity=1).encode(
        alt.X("difference:Q", title=title), y=y, color=colour, tooltip=tooltip
    )
    nought = alt.Chart(alt.NamedData("nought")).mark_rule(strokeDash=[4, 3]).encode(alt.X("x:Q", title=title))
    chart = (
        alt.layer(nought, bars, points)
        .add_params(_param("corner", corners[0]))
        .properties(width="container", height={"step": 26})
    )
    names = {corner: "mean over the grid" if corner == MEAN else corner for corner in corners}
    lines = tuple(
        (row.factor, row.variant, names[row.corner], f"{row.difference:+.2f}", f"{row.low:+.2f} to {row.high:+.2f}")
        for row in contents.ablations
    )
    return Figure(
        name="ablations",
        title="Ablations",
        caption="What a variant changes, in points of the main metric, with 95 % intervals. An interval that holds 0 says "
        "that no difference was seen.",
        spec=_spec(chart),
        data={"ablations": data, "nought": {"x": [0]}},
        controls=_unless_one("Size", tuple(Option(names[corner], {"corner": corner}) for corner in corners)),
        tables=(TextTable("All differences", ("factor", "variant", "size", "difference", "95 % interval"), lines),),
        images={f"ablations-{corner}": {"corner": corner} for corner in corners},
    )


def curve_figure(contents: Contents) -> Figure | None:
    """The losses while training."""
    data, terms = tables.curves(contents.metrics)
    if not data:
        return None
    options = tuple(
        Option(term, {"stage": stage, "term": term}, group=f"stage {stage}") for stage in terms for term in terms[stage]
    )
    widths, depths = (sorted(dict.fromkeys(data[axis]), key=_descending) for axis in ("width", "depth"))
    tooltip = [alt.Tooltip(f"{name}:N", title=name) for name in ("stage", "size")]
    chart = (
        alt.Chart(alt.NamedData("curves"))
        .transform_filter("datum.stage == stage && isValid(datum[term])")
        .transform_calculate(value="datum[term]")
        .mark_line(strokeWidth=1.4, clip=True)
        .encode(
            x=alt.X("step:Q", title="step of the stage"),
            y=alt.Y("value:Q", title="loss", scale=alt.Scale(zero=False)),
            color=alt.Color("width:N", title="width", sort=widths, scale=alt.Scale(domain=widths)),
            strokeDash=alt.StrokeDash(
                "depth:N", title="depth", sort=depths, scale=alt.Scale(domain=depths, range=_DASHES[: len(depths)])
            ),
            detail="size:N",
            tooltip=[*tooltip, alt.Tooltip("step:Q"), alt.Tooltip("value:Q", title="loss", format=".4~g")],
        )
        .add_params(*(_param(name, options[0].params[name]) for name in ("stage", "term")))
        .properties(width="container", height=300)
    )
    last: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in tables.rows_of(data):
        last.setdefault((row["stage"], row["size"]), []).append(row)
    lines = tuple(
        (stage, size, term, _number(points[0][term]), _number(points[-1][term]))
        for (stage, size), points in last.items()
        for term in terms[stage]
    )
    headers = ("stage", "size", "loss term", "first", "last")
    return Figure(
        name="curves",
        title="Training losses",
        caption="The loss of each size, unweighted. A point is the mean of a stretch of logged steps where there are many.",
        spec=_spec(chart),
        data={"curves": data},
        controls=_unless_one("Loss", options),
        tables=(TextTable("First and last point of every curve", headers, lines),),
        images={f"loss-{o.params['stage']}-{o.params['term']}": o.params for o in options},
    )


_DASHES = [[1, 0], [6, 3], [2, 3], [8, 3, 2, 3], [1, 2]]


def _descending(text: str) -> tuple[int, float, str]:
    try:
        return 0, -float(text), ""
    except ValueError:
        return 1, 0.0, text


def score_figure(contents: Contents) -> Figure | None:
    """The scores on held-out rows while training."""
    data = tables.select_scores(contents.metrics)
    if not data:
        return None
    stages = list(dict.fromkeys(data["stage"]))
    base = alt.Chart(alt.NamedData("scores")).encode(
        x=alt.X("step_of_run:Q", title="step, counted on over the stages"),
        y=alt.Y("score:Q", title="score on the select rows", scale=alt.Scale(zero=False)),
        color=alt.Color("stage:N", title=None, sort=stages, scale=alt.Scale(domain=stages)),
    )
    tooltip = [alt.Tooltip("stage:N"), alt.Tooltip("step:Q"), alt.Tooltip("score:Q", format=".4f")]
    points = base.mark_point(filled=True, size=60, strokeWidth=1.5).encode(
        fillOpacity=alt.condition("datum.best", alt.value(1), alt.value(0)), tooltip=tooltip
    )
    chart = alt.layer(base.mark_line(strokeWidth=1.4), points).properties(width="container", height=240)
    lines = tuple(
        (row["stage"], str(row["step"]), f"{row['score']:.4f}", "yes" if row["best"] else "")
        for row in tables.rows_of(data)
    )
    return Figure(
        name="scores",
        title="Scores while training",
        caption="The mean of the main metric over the sizes of the stage, on rows that are held out for choosing. Filled "
        "points were the best so far; each stage goes on with its best weights.",
        spec=_spec(chart),
        data={"scores": data},
        controls=(),
        tables=(TextTable("All evaluations", ("stage", "step", "score", "best so far"), lines),),
        images={"scores": {}},
    )


def head_figure(scores: Any) -> Figure:  # noqa: ANN401 (an array)
    """The importance of heads."""
    data = tables.heads(scores)
    tooltip = [alt.Tooltip("layer:O"), alt.Tooltip("head:O"), alt.Tooltip("score:Q", format=".4~g")]
    chart = (
        alt.Chart(alt.NamedData("heads"))
        .mark_rect()
        .encode(
            x=alt.X("head:O", title="head", axis=_axis(labelAngle=0)),
            y=alt.Y("layer:O", title="layer", axis=_axis()),
            color=alt.Color(
                "share:Q",
                title="of the layer's highest",
                scale=alt.Scale(domain=[0, 1]),
                legend=alt.Legend(format=".0%", gradientLength=120),
            ),
            tooltip=[*tooltip, alt.Tooltip("share:Q", title="of the layer's highest", format=".0%")],
        )
        .properties(width="container", height={"step": 24})
    )
    lines = tuple((str(layer), *(f"{score:.3g}" for score in row)) for layer, row in enumerate(scores))
    headers = ("layer", *(f"head {head}" for head in range(scores.shape[1])))
    return Figure(
        name="heads",
        title="Importance of heads",
        caption="How much each head contributes to the loss, compared with the most important head of its layer: only the "
        "order within a layer has a meaning. Heads and layers are counted from 0, as they stood before rewiring.",
        spec=_spec(chart),
        data={"heads": data},
        controls=(),
        tables=(TextTable("Scores of all heads", headers, lines),),
        images={"heads": {}},
    )


def neuron_figure(scores: Any) -> Figure:  # noqa: ANN401 (an array)
    """The importance of neurons."""
    data = tables.neurons(scores)
    titles = {"share": "importance, % of the layer's highest", "total": "importance of all up to here, % of the layer's"}
    chart = (
        alt.Chart(alt.NamedData("neurons"))
        .transform_calculate(value="datum[measure]")
        .mark_line(strokeWidth=1.5)
        .encode(
            x=alt.X("part:Q", title="neurons of the layer, most important first, %", scale=alt.Scale(domain=[0, 100])),
            y=alt.Y("value:Q", title="%", scale=alt.Scale(domain=[0, 100])),
            color=alt.Color("layer:O", title="layer", scale=alt.Scale(scheme="viridis")),
            tooltip=[
                alt.Tooltip("layer:O"),
                alt.Tooltip("part:Q", title="neurons, %", format=".3~g"),
                *(alt.Tooltip(f"{name}:Q", title=title, format=".3~g") for name, title in titles.items()),
            ],
        )
        .add_params(_param("measure", "share"))
        .properties(width="container", height=300)
    )
    needed = {share: tables.neurons_for(scores, share) for share in (0.5, 0.8, 0.95)}
    lines = tuple(
        (str(layer), *(f"{100 * parts[layer]:.1f} %" for parts in needed.values())) for layer in range(len(scores))
    )
    headers = ("layer", *(f"neurons with {share:.0%} of the importance" for share in needed))
    return Figure(
        name="neurons",
        title="Importance of neurons",
        caption="The neurons of each layer by descending importance.",
        spec=_spec(chart),
        data={"neurons": data},
        controls=(Control("Show", tuple(Option(text, {"measure": name}) for name, text in titles.items())),),
        tables=(TextTable("How few neurons hold most of the importance", headers, lines),),
        images={"neurons": {"measure": "share"}, "neurons-total": {"measure": "total"}},
    )


def pair_figure(data: Table) -> Figure:
    """How the predictions of each pair of sizes compare."""
    names = list(dict.fromkeys(data["smaller"]))
    measures = [name for name in tables.PAIRED if name in data["measure"]]
    chart = (
        _heat(
            "pairs",
            x=alt.X("larger:N", title=None, sort=names, axis=_axis(orient="top", labelAngle=-60)),
            y=alt.Y("smaller:N", title=None, sort=names, axis=_axis()),
            tooltip=[
                alt.Tooltip("smaller:N", title="row"),
                alt.Tooltip("larger:N", title="column"),
                alt.Tooltip("text:N", title="share, %"),
            ],
            test="datum.measure == measure",
        )
        .add_params(_param("measure", measures[0]), _param(DARK, False))
        .properties(width="container", height={"step": 26})
    )
    how = (
        "Agreement is the share of the validation rows with the same class."
        if "flips" in measures
        else "Agreement is Pearson's correlation of the two scores on the validation rows, times 100."
    )
    flips = (
        " A flip is a row that the one of the column gets right and the one of the row gets wrong: below the diagonal, "
        "what is lost by going from the larger to the smaller."
        if "flips" in measures
        else ""
    )
    return Figure(
        name="pairs",
        title="Agreement and flips between sizes",
        caption=how + flips,
        spec=_spec(chart),
        data={"pairs": data},
        controls=_unless_one("Show", tuple(Option(tables.PAIRED[name], {"measure": name}) for name in measures)),
        tables=tuple(
            TextTable(
                tables.PAIRED[name],
                ("", *names),
                tuple((row, *values) for row, values in tables.matrix(data, name)),
            )
            for name in measures
        ),
        images={name: {"measure": name} for name in measures},
    )


def attention_figure(attention: Attention) -> Figure:
    """The attention maps of all heads of a layer; the page unpacks the chosen ones into the chart's data."""
    chart = (
        alt.Chart(alt.NamedData("attention"))
        .mark_rect()
        .encode(
            x=alt.X("key:O", title=None, axis=_axis(labelExpr=_TOKEN, labelAngle=-90, labelLimit=70, labelPadding=3)),
            y=alt.Y("query:O", title=None, axis=_axis(labelExpr=_TOKEN, labelLimit=70, labelPadding=3)),
            color=alt.Color("weight:Q", title=None, scale=alt.Scale(domain=[0, 1]), legend=None),
            tooltip=[
                alt.Tooltip("head:O"),
                alt.Tooltip("from:N"),
                alt.Tooltip("to:N"),
                alt.Tooltip("weight:Q", format=".2f"),
            ],
        )
        .properties(width={"step": 13}, height={"step": 13})
        .facet(facet=alt.Facet("head:O", title=None, header=alt.Header(labelExpr="'head ' + datum.value")), columns=4)
    )
    texts = tuple(Option(entry.text, {"text": place}) for place, entry in enumerate(attention.texts))
    return Figure(
        name="attention",
        title="Attention",
        caption="How much each token (down the side) attends to each token (along the bottom), in every head of one layer "
        "of one size. Heads stand in the order of their importance where the run rewired them; layers are counted from 0 "
        "in the full network.",
        spec=_spec(chart),
        data={},
        controls=(
            Control("Text", texts),
            Control("Size", tuple(Option(name, {"size": name}) for name in attention.texts[0].maps)),
            Control("Layer", ()),
        ),
        tables=(),
        images={},
    )


_TOKEN = "slice(datum.label, 3)"
"""Tokens are numbered, so that one that comes twice has two places; the number is not shown."""


def _unless_one(label: str, options: tuple[Option, ...]) -> tuple[Control, ...]:
    return (Control(label, options),) if len(options) > 1 else ()


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.4g}"


def _spec(chart: Any) -> dict[str, Any]:  # noqa: ANN401 (any chart of Altair)
    """The chart as Vega-Lite, without the configuration that Altair adds: the page brings its own."""
    return {key: value for key, value in chart.to_dict().items() if key not in ("config", "$schema")}
