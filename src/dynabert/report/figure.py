"""A figure: a chart of Altair, what can be chosen in it, and the same numbers as tables.

A chart names its data, which the page holds by column, and has a parameter for everything that can be chosen. An image
is drawn from the same chart.
"""

import copy
from dataclasses import dataclass
from typing import Any, Literal

import altair as alt
import vl_convert

from dynabert.report.tables import Table, rows_of

SHAPES = ("circle", "square", "cross", "diamond", "triangle-up", "triangle-down", "triangle-right")
"""One fewer than `COLOURS`, so that both together tell 56 methods apart."""
COLOURS = ("#3b82c4", "#d0682a", "#2a9160", "#a55fc4", "#cc4258", "#8f7a12", "#16879a", "#7c828a")
"""Each stands out from a white and from a dark page."""

RAMPS = {False: ["#eef4fb", "#a8cdea", "#4a95cc", "#08306b"], True: ["#1c2530", "#27577f", "#4fa3d9", "#d6ecff"]}
"""From the lowest to the highest value, on a light and on a dark page."""

DARK = "dark"
"""The parameter that says whether the page is dark: the text on a heat map is light or dark by it."""

WIDE: dict[str, Any] = {"width": "container", "autosize": alt.AutoSizeParams(type="fit-x", contains="padding")}
"""As wide as the page allows, axes and legend included."""

IMAGE_WIDTH = 520


@dataclass(frozen=True)
class Option:
    """Something to choose: its text, and the parameters of the chart that it sets."""

    text: str
    params: dict[str, Any]


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


def theme(*, dark: bool, font: str = "sans-serif") -> dict[str, Any]:
    """The Vega configuration of a light or a dark page."""
    ink, faint, line = ("#e6e8eb", "#aab1ba", "#3a424c") if dark else ("#1f2328", "#57606a", "#d8dee4")
    axis = {"labelColor": faint, "titleColor": ink, "domainColor": line, "gridColor": line, "tickColor": line}
    sizes = {"titleFontWeight": 500, "titleFontSize": 12, "labelFontSize": 11}
    layers = {"scheme": "viridis", "extent": [0.3, 1.0] if dark else [0.0, 0.85]}
    return {
        "background": "transparent",
        "font": font,
        "axis": {**axis, **sizes, "gridOpacity": 0.6},
        "axisXQuantitative": {"tickCount": {"expr": "ceil(width / 70)"}},
        "axisY": {"labelLimit": 180},
        "legend": {"labelColor": ink, "titleColor": faint, "titleFontWeight": 500, "labelFontSize": 11},
        "title": {"color": ink, "fontWeight": 500, "fontSize": 12},
        "header": {"labelColor": ink, "titleColor": ink},
        "text": {"color": ink},
        "rule": {"color": faint},
        "view": {"stroke": None},
        "range": {"category": list(COLOURS), "heatmap": RAMPS[dark], "ramp": RAMPS[dark], "ordinal": layers},
    }


def image(figure: Figure, name: str, kind: Literal["svg", "png"]) -> bytes:
    """A figure as a file, on white.

    :param name: one of its images.
    :param kind: ``svg``, or ``png`` at twice the size.
    """
    spec = copy.deepcopy(figure.spec)
    for param in spec.get("params", ()):
        param["value"] = figure.images[name].get(param["name"], param["value"])
    spec["width"] = IMAGE_WIDTH
    spec["datasets"] = {key: rows_of(columns) for key, columns in figure.data.items()}
    config = {**theme(dark=False), "background": "white"}
    if kind == "svg":
        return vl_convert.vegalite_to_svg(spec, vl_version=vega_lite_version(), config=config).encode()
    return vl_convert.vegalite_to_png(spec, vl_version=vega_lite_version(), config=config, scale=2)


def vega_lite_version() -> str:
    """The version of Vega-Lite that the charts are written for, as ``6.1``."""
    return ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])


def spec_of(chart: Any) -> dict[str, Any]:  # noqa: ANN401 (any chart of Altair)
    """A chart as Vega-Lite, without the configuration that Altair adds: the page brings its own."""
    return {key: value for key, value in chart.to_dict().items() if key not in ("config", "$schema")}


def heat_map(data: str, *, x: alt.X, y: alt.Y, tooltip: list[alt.Tooltip]) -> alt.LayerChart | alt.FacetChart:
    """A heat map of a chosen measure, whose cells are written in where there is room.

    :param data: the name of a table with the columns measure, share (in [0, 1]) and text.
    """
    chosen = alt.Chart(alt.NamedData(data)).transform_filter("datum.measure == measure")
    base = chosen.encode(x=x, y=y, tooltip=tooltip)
    cells = base.mark_rect().encode(alt.Color("share:Q", scale=alt.Scale(domain=[0, 1]), legend=None))
    # White on the deep colours, black on the others: the ratio is 4.5 or more on every colour of RAMPS.
    deep = "dark ? datum.share < 0.5 : datum.share > 0.755"
    strong = alt.condition(deep, alt.value("#ffffff"), alt.value("#000000"))
    room: dict[str, Any] = {
        "fontSize": alt.expr("min(12, bandwidth('x') / 3)"),
        "opacity": alt.expr("bandwidth('x') < 25 ? 0 : 1"),
    }
    return alt.layer(cells, base.mark_text(**room).encode(text="text:N", color=strong))


def bare_axis(**options: Any) -> alt.Axis:  # noqa: ANN401 (options of Axis)
    """The axis of a heat map: labels alone."""
    return alt.Axis(ticks=False, domain=False, grid=False, **options)


def filled_where(test: str) -> Any:  # noqa: ANN401 (a condition of Altair)
    """Which points are filled; the others are hollow.

    One layer holds both: a layer without any point has no extent, and Vega warns of that on the console.
    """
    return alt.condition(test, alt.value(1), alt.value(0))


def param(name: str, value: Any) -> alt.Parameter:  # noqa: ANN401 (any JSON value)
    """A parameter that the page may set."""
    return alt.param(name=name, value=value)


def nominal_tips(*names: str) -> list[alt.Tooltip]:
    """What is said of a point by the names of its columns."""
    return [alt.Tooltip(f"{name}:N", title=name) for name in names]


def unless_one(label: str, options: tuple[Option, ...]) -> tuple[Control, ...]:
    """A control, if there is something to choose."""
    return (Control(label, options),) if len(options) > 1 else ()


def number(value: float | None) -> str:
    """Four significant digits, or a dash."""
    return "-" if value is None else f"{value:,.4g}"
