"""The figure of an attention study: what the remaining heads reproduce, against how many there are."""

from typing import TYPE_CHECKING

from dynabert.studies.patterns import SOURCES, AttentionStudy, SubnetCoverage

if TYPE_CHECKING:
    import altair

MEASURES = ("covered", "removed")
"""What is drawn, of `dynabert.studies.patterns.Score`, and what the data of its panels are called."""

Point = dict[str, str | float | None]

_LOOKS: dict[str, tuple[str, list[int]]] = {
    "distilled": ("#0072b2", [1, 0]),
    "cut, not trained": ("#d55e00", [6, 3]),
    "the same heads, unchanged": ("#009e73", [2, 2]),
    "random heads": ("#888888", [8, 3, 2, 3]),
}
"""Name, colour and dashes of each of `SOURCES`, in their order; told apart without colour too."""


def figure(study: AttentionStudy) -> "altair.VConcatChart":
    """What each set of heads reproduces, against the share of heads that remain; a column for each number of layers.

    Above, the share of all patterns that is covered; the dotted diagonal is as much as there are heads. Below, for the
    patterns of those heads that the Subnet does not have, the mean similarity of the closest head. Bars are intervals.
    """
    import altair as alt

    titles = (f"patterns covered, % (similarity ≥ {study.threshold:g})", "removed patterns: similarity, %")
    panels = [
        _panels(measure, points, title, diagonal=measure == "covered")
        for measure, title in zip(MEASURES, titles, strict=True)
        if (points := [point for row in study.rows for point in _points(study, row, measure)])
    ]
    return alt.vconcat(*panels)


def _panels(name: str, points: list[Point], title: str, *, diagonal: bool) -> "altair.FacetChart":
    """One measure: a panel for each number of layers, a line for each set of heads."""
    import altair as alt

    names, legend = list(_LOOKS), alt.Legend(symbolType="stroke", symbolOpacity=1, symbolSize=400, symbolStrokeWidth=2)
    colours, dashes = zip(*_LOOKS.values(), strict=True)
    base = alt.Chart().encode(
        x=alt.X("heads:Q", title="heads that remain, %", scale=alt.Scale(domain=[0, 100]), axis=alt.Axis(tickCount=5)),
        color=alt.Color("source:N", title=None, scale=alt.Scale(domain=names, range=colours), legend=legend),
    )
    value = alt.Y("value:Q", title=title, scale=alt.Scale(zero=diagonal))
    dash = alt.StrokeDash("source:N", title=None, scale=alt.Scale(domain=names, range=dashes), legend=legend)
    tooltip = [alt.Tooltip(f"{column}:N", title=column) for column in ("source", "subnet", "layers")]
    tooltip += [alt.Tooltip(f"{column}:Q", format=".1f") for column in ("heads", "value", "low", "high")]
    layers = [
        base.mark_rule(opacity=0.5).encode(y=alt.Y("low:Q", title=title), y2="high:Q"),
        base.mark_line(point=True).encode(y=value, strokeDash=dash, tooltip=tooltip),
    ]
    if diagonal:
        layers.insert(0, base.mark_line(strokeDash=[2, 4]).encode(y="heads:Q", color=alt.value("#999999")))
    deepest_first = sorted({str(point["layers"]) for point in points}, key=lambda label: -int(label.split()[0]))
    data = alt.InlineData(values=points, name=name)
    panel = alt.layer(*layers, data=data).properties(width=220, height=220)
    facet = alt.Facet("layers:N", title=None, sort=deepest_first)
    return panel.facet(facet=facet, columns=len(deepest_first))


def _points(study: AttentionStudy, row: SubnetCoverage, measure: str) -> list[Point]:
    """The points of a Subnet, in %; none where there is nothing to measure."""
    found = ((name, getattr(row.scores[source], measure)) for source, name in zip(SOURCES, _LOOKS, strict=True))
    return [
        {
            "source": name,
            "subnet": row.subnet,
            "layers": f"{row.n_layers} layers".removesuffix("s" * (row.n_layers == 1)),
            "heads": 100 * row.n_heads / study.n_patterns,
            **{end: None if value is None else 100 * value for end, value in estimate._asdict().items()},
        }
        for name, estimate in found
        if estimate is not None
    ]
