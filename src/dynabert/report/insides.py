"""Figures of how a network was trained and what is inside it: losses, scores, importance, coverage, attention."""

from typing import Any

import altair as alt
import numpy as np

from dynabert.report import tables
from dynabert.report.figure import (
    DARK,
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
from dynabert.report.network import MAX_LENGTH, Attention
from dynabert.studies.attention_figure import figure as coverage_chart
from dynabert.studies.patterns import AttentionStudy

_DASHES = [[1, 0], [6, 3], [2, 3], [8, 3, 2, 3], [1, 2]]


def curve_figure(metrics: list[dict[str, Any]]) -> Figure | None:
    """The losses while training; None where the log has none.

    :param metrics: lines of the training log.
    """
    data, terms = tables.curves(metrics)
    if not data:
        return None
    options = tuple(
        Option(f"{stage}: {term}", {"stage": stage, "term": term}) for stage in terms for term in terms[stage]
    )
    widths, depths = (sorted(dict.fromkeys(data[axis]), key=_descending) for axis in ("width", "depth"))
    dashes = alt.Scale(domain=depths, range=[_DASHES[i % len(_DASHES)] for i in range(len(depths))])
    chart = (
        alt.Chart(alt.NamedData("curves"))
        .transform_filter("datum.stage == stage && isValid(datum[term])")
        .transform_calculate(value="datum[term]")
        .mark_line(strokeWidth=1.4)
        .encode(
            x=alt.X("step:Q", title="step of the stage"),
            y=alt.Y("value:Q", title="loss", scale=alt.Scale(zero=False)),
            color=alt.Color("width:N", title="width", sort=widths, scale=alt.Scale(domain=widths)),
            strokeDash=alt.StrokeDash("depth:N", title="depth", sort=depths, scale=dashes),
            detail="size:N",
            tooltip=[
                *nominal_tips("stage", "size", "step"),
                alt.Tooltip("value:Q", title="loss", format=".4~g"),
            ],
        )
        .add_params(*(param(name, value) for name, value in options[0].params.items()))
        .properties(**WIDE, height=300)
    )
    return Figure(
        name="curves",
        title="Training losses",
        caption="The loss of each size, unweighted. Of many logged steps, a point after the first is the mean of "
        "a stretch.",
        spec=spec_of(chart),
        data={"curves": data},
        controls=unless_one("Stage and loss", options),
        tables=(_ends_of(data, terms),),
        images={f"loss-{option.params['stage']}-{option.params['term']}": option.params for option in options},
    )


def _ends_of(data: tables.Table, terms: dict[str, list[str]]) -> TextTable:
    """Where every curve begins and ends."""
    series: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in tables.rows_of(data):
        series.setdefault((row["stage"], row["size"]), []).append(row)
    rows = tuple(
        (stage, size, term, number(points[0][term]), number(points[-1][term]))
        for (stage, size), points in series.items()
        for term in terms[stage]
    )
    return TextTable("First and last point of every curve", ("stage", "size", "loss term", "first", "last"), rows)


def _descending(text: str) -> tuple[int, float, str]:
    """Numbers from the largest, then other names."""
    try:
        return 0, -float(text), ""
    except ValueError:
        return 1, 0.0, text


def score_figure(metrics: list[dict[str, Any]]) -> Figure | None:
    """The scores on held-out rows while training; None where the log has none.

    :param metrics: lines of the training log.
    """
    data = tables.select_scores(metrics)
    if not data:
        return None
    stages = list(dict.fromkeys(data["stage"]))
    by_stage: dict[str, Any] = {
        "scale": alt.Scale(domain=stages),
        "sort": stages,
        "legend": alt.Legend(title=None),
    }
    base = alt.Chart(alt.NamedData("scores")).encode(
        x=alt.X("step_of_run:Q", title="step, counted on over the stages"),
        y=alt.Y("score:Q", title="score on the select rows", scale=alt.Scale(zero=False)),
        color=alt.Color("stage:N", **by_stage),
    )
    points = base.mark_point(size=55, opacity=1).encode(
        fill=alt.Fill("stage:N", **by_stage),
        fillOpacity=filled_where("datum.best"),
        tooltip=[*nominal_tips("stage", "step"), alt.Tooltip("score:Q", format=".4f")],
    )
    chart = alt.layer(base.mark_line(strokeWidth=1.4), points).properties(**WIDE, height=240)
    lines = tuple(
        (row["stage"], str(row["step"]), f"{row['score']:.4f}", "yes" if row["best"] else "")
        for row in tables.rows_of(data)
    )
    return Figure(
        name="scores",
        title="Scores while training",
        caption="The mean of the main metric over the sizes of the stage, on rows that are held out for choosing. "
        "Filled points were the best so far; each stage ends with its best weights.",
        spec=spec_of(chart),
        data={"scores": data},
        controls=(),
        tables=(TextTable("All evaluations", ("stage", "step", "score", "best so far"), lines),),
        images={"scores": {}},
    )


def head_figure(scores: np.ndarray) -> Figure:
    """The importance of heads.

    :param scores: shape (layers, heads).
    """
    share = "of the layer's highest"
    chart = (
        alt.Chart(alt.NamedData("heads"))
        .mark_rect()
        .encode(
            x=alt.X("head:O", title="head", axis=bare_axis(labelAngle=0)),
            y=alt.Y("layer:O", title="layer", axis=bare_axis()),
            color=alt.Color(
                "share:Q",
                title=share,
                scale=alt.Scale(domain=[0, 1]),
                legend=alt.Legend(format=".0%", gradientLength=120),
            ),
            tooltip=[
                *nominal_tips("layer", "head"),
                alt.Tooltip("score:Q", format=".4~g"),
                alt.Tooltip("share:Q", title=share, format=".0%"),
            ],
        )
        .properties(**WIDE, height=24 * len(scores))
    )
    lines = tuple((str(layer), *(f"{score:.3g}" for score in row)) for layer, row in enumerate(scores))
    headers = ("layer", *(f"head {head}" for head in range(scores.shape[1])))
    return Figure(
        name="heads",
        title="Importance of heads",
        caption="How much each head contributes to the loss, compared with the most important head of its layer: only "
        "the order within a layer has a meaning. Heads and layers are counted from 0, as they stood before rewiring.",
        spec=spec_of(chart),
        data={"heads": tables.heads(scores)},
        controls=(),
        tables=(TextTable("Scores of all heads", headers, lines),),
        images={"heads": {}},
    )


def neuron_figure(scores: np.ndarray) -> Figure:
    """The importance of neurons.

    :param scores: shape (layers, neurons).
    """
    titles = {
        "share": "importance, % of the layer's highest",
        "total": "importance of all up to here, % of the layer's",
    }
    chart = (
        alt.Chart(alt.NamedData("neurons"))
        .transform_calculate(value="datum[measure]")
        .mark_line(strokeWidth=1.5)
        .encode(
            x=alt.X("part:Q", title="neurons of the layer, most important first, %", scale=alt.Scale(domain=[0, 100])),
            y=alt.Y("value:Q", title="importance, %", scale=alt.Scale(domain=[0, 100])),
            color=alt.Color("layer:O", title="layer"),
            tooltip=[
                *nominal_tips("layer"),
                alt.Tooltip("part:Q", title="neurons, %", format=".3~g"),
                *(alt.Tooltip(f"{name}:Q", title=title, format=".3~g") for name, title in titles.items()),
            ],
        )
        .add_params(param("measure", "share"))
        .properties(**WIDE, height=300)
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
        spec=spec_of(chart),
        data={"neurons": tables.neurons(scores)},
        controls=(Control("Show", tuple(Option(text, {"measure": name}) for name, text in titles.items())),),
        tables=(TextTable("How few neurons hold most of the importance", headers, lines),),
        images={"neurons": {"measure": "share"}, "neurons-total": {"measure": "total"}},
    )


_COVERAGE = {
    "covered": "Patterns covered, % (95 % interval)",
    "removed": "Patterns of removed heads: similarity of the closest head, % (95 % interval)",
}


def coverage_figure(study: AttentionStudy) -> Figure | None:
    """What the heads of each size reproduce of the teacher's patterns; None where the study has no size.

    The page draws its panels side by side, or where that makes them too narrow one below the other.
    """
    if not study.rows:
        return None
    spec = spec_of(coverage_chart(study))
    held = [part["data"] for part in (spec, *spec["vconcat"]) if "data" in part]  # by the whole, if there is one part
    data = {each["name"]: tables.table(each.pop("values")) for each in held}
    texts = "text" if study.n_texts == 1 else "texts"
    return Figure(
        name="coverage",
        title="Attention patterns that remain",
        caption=f"How well the remaining heads reproduce the {study.n_patterns} attention patterns of the teacher on "
        f"{study.n_texts:,} {texts}, in a panel for each number of layers. A pattern is covered if the closest head "
        f"has a similarity (1 - JSD) of {study.threshold:g} or more; {study.pairs_alike:.0%} of all pairs of patterns "
        f"are so alike, {study.pair_similarity:.0%} is their mean, and the dotted line is as many patterns as there "
        "are heads. Bars are 95 % bootstrap intervals over texts.",
        spec=spec,
        data=data,
        controls=(),
        tables=tuple(_covered(_COVERAGE[name], points) for name, points in data.items()),
        images={"coverage": {}},
    )


def _covered(caption: str, points: tables.Table) -> TextTable:
    """The values of every size, a column for each set of heads."""
    rows = tables.rows_of(points)
    shown = {(row["subnet"], row["source"]): _with_ends(row) for row in rows}
    heads = {row["subnet"]: f"{row['heads']:.1f}" for row in rows}
    sources = tuple(dict.fromkeys(points["source"]))
    lines = tuple((size, heads[size], *(shown[size, source] for source in sources)) for size in heads)
    return TextTable(caption, ("size", "heads, %", *sources), lines)


def _with_ends(row: dict[str, Any]) -> str:
    ends = "" if row["low"] is None else f" ({row['low']:.1f} to {row['high']:.1f})"
    return f"{row['value']:.1f}{ends}"


def pattern_figure(study: AttentionStudy) -> Figure | None:
    """Each pattern of the teacher with the remaining head that is closest to it.

    None where the study has no size, or is of before it kept how many heads a layer has.
    A size at a time, and of each how many patterns one head covers.
    """
    if not study.rows or not study.n_heads:
        return None
    data = tables.patterns(study)
    sizes = tuple(Option(row.subnet, {"measure": row.subnet}) for row in study.rows)
    chart = (
        heat_map(
            "patterns",
            x=alt.X("head:O", title="head of the teacher", axis=bare_axis(labelAngle=0)),
            y=alt.Y("layer:O", title="layer", axis=bare_axis()),
            tooltip=[
                *nominal_tips("layer", "head"),
                alt.Tooltip("share:Q", title="similarity", format=".0%"),
                alt.Tooltip("nearest:N", title="closest remaining head"),
            ],
        )
        .add_params(param("measure", study.rows[0].subnet), param(DARK, False))
        .properties(**WIDE, height=26 * (max(data["layer"]) + 1))
    )
    lines = tuple(
        (
            row.subnet,
            f"{np.mean(covers):.2f}",
            str(max(covers)),
            *(str(sum(n == count for n in covers)) for count in (0, 1)),
            str(sum(n > 1 for n in covers)),
        )
        for row in study.rows
        for covers in (row.matching.covers,)
    )
    headers = ("size", "patterns of a head, mean", "most", "heads that cover none", "one", "several")
    return Figure(
        name="patterns",
        title="Which head takes over which pattern",
        caption="How well the closest remaining head of a size reproduces each attention pattern of the teacher, in %: "
        "point at a pattern to see which head that is, by its layer and number in the full network after rewiring. The "
        f"table says how many patterns one head covers with a similarity of {study.threshold:g} or more; several may "
        "cover the same one.",
        spec=spec_of(chart),
        data={"patterns": data},
        controls=unless_one("Size", sizes),
        tables=(TextTable("Patterns that the remaining heads cover", headers, lines),),
        images={f"patterns-{option.text}": option.params for option in sizes},
    )


def attention_figure(attention: Attention) -> Figure:
    """The attention maps of all heads of a layer; the page unpacks the chosen ones into the chart's data."""
    # Tokens are numbered, so that one that comes twice has two places; the number is not shown.
    token = bare_axis(labelExpr="slice(datum.label, 3)", labelLimit=70, labelPadding=3)
    below = bare_axis(labelExpr="slice(datum.label, 3)", labelLimit=70, labelPadding=3, labelAngle=-90)
    chart = (
        alt.Chart(alt.NamedData("attention"))
        .mark_rect()
        .encode(
            x=alt.X("key:O", title=None, axis=below),
            y=alt.Y("query:O", title=None, axis=token),
            color=alt.Color("weight:Q", scale=alt.Scale(domain=[0, 1]), legend=None),
            tooltip=[*nominal_tips("head", "from", "to"), alt.Tooltip("weight:Q", format=".2f")],
        )
        .properties(width={"step": 13}, height={"step": 13})
        .facet(facet=alt.Facet("head:O", title=None, header=alt.Header(labelExpr="'head ' + datum.value")), columns=4)
    )
    return Figure(
        name="attention",
        title="Attention",
        caption="How much each token (down the side) attends to each token (along the bottom), in every head of one "
        "layer of one size: the colours run from 0 to 1. Heads stand in the order that the run gave them by "
        "importance; layers are counted from 0 in the full network. Of a text of more than "
        f"{MAX_LENGTH} tokens the network was given the first {MAX_LENGTH - 1} and the last.",
        spec=spec_of(chart),
        data={},
        controls=(
            Control("Text", tuple(Option(entry.text, {"text": i}) for i, entry in enumerate(attention.texts))),
            Control("Size", tuple(Option(name, {"size": name}) for name in attention.texts[0].maps)),
            Control("Layer", ()),  # which ones depends on the size, so the page fills it in
        ),
        tables=(TextTable("The token that each token attends to most, in every head of the chosen layer", (), ()),),
        images={},
    )
