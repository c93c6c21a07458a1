"""Figures of differences with their intervals: DynaBERT minus other methods, and what a variant of it changes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from dynabert.baselines import ramped
from dynabert.report import tables
from dynabert.report.figure import (
    WIDE,
    Figure,
    Option,
    TextTable,
    filled_where,
    nominal_tips,
    param,
    spec_of,
    unless_one,
)
from dynabert.report.studies import Ablated, Trainings, shown
from dynabert.report.tables import Table
from dynabert.statistics import Difference
from dynabert.studies.ablate import BASE, MEAN, Effect
from dynabert.studies.standings import CASCADE, Comparison, Standing
from dynabert.studies.tuning import covering, rate_text

SURE = 0.05
"""Points of a corrected p value below this are filled."""


def _how_read(trainings: Trainings) -> str:
    return (
        f"Bars are paired 95 % intervals {covering(trainings.seeds)}. Filled points have a p value below {SURE:g} "
        "after Holm's correction for all differences of the study; hollow ones may be chance."
    )


@dataclass(frozen=True)
class _Chart:
    """How differences are drawn.

    :param name: of the data.
    :param y: column of the lines.
    :param colour: column of the colours.
    :param colours: all values that have one, in their order.
    :param title: of the axis.
    :param tips: columns of text that are told of a point.
    """

    name: str
    y: str
    colour: str
    colours: Sequence[str]
    title: str
    tips: tuple[str, ...]

    def of(self, data: Table) -> alt.LayerChart | alt.FacetChart:
        """One line for each row of the chosen `where`."""
        scale: dict[str, Any] = {"scale": alt.Scale(domain=list(self.colours)), "legend": None}
        field = f"{self.colour}:N"
        base = (
            alt.Chart(alt.NamedData(self.name))
            .transform_filter("datum.where == where")
            .encode(
                y=alt.Y(f"{self.y}:N", title=None, sort=list(dict.fromkeys(data[self.y]))),
                color=alt.Color(field, **scale),
            )
        )
        tooltip = [
            *nominal_tips(*self.tips),
            *(alt.Tooltip(f"{name}:Q", title=name, format="+.2f") for name in ("difference", "low", "high")),
            alt.Tooltip("p_holm:Q", title="p (Holm)", format=".3f"),
        ]
        x = alt.X("low:Q", title=self.title, scale=alt.Scale(padding=8))
        bars = base.mark_rule(strokeWidth=2).encode(x, x2="high:Q")
        points = base.mark_point(size=70, strokeWidth=1.5, opacity=1).encode(
            alt.X("difference:Q", title=self.title),
            fill=alt.Fill(field, **scale),
            fillOpacity=filled_where(f"datum.p_holm < {SURE}"),
            tooltip=tooltip,
        )
        zero = alt.Chart(alt.NamedData("zero")).mark_rule(strokeDash=[4, 3]).encode(alt.X("x:Q", title=self.title))
        places = list(dict.fromkeys(data["where"]))
        return (
            alt.layer(zero, bars, points)
            .add_params(param("where", places[0]))
            .properties(**WIDE, height=26 * max(Counter(data["where"]).values()) + 14)
        )


def _numbers(difference: Difference, p_holm: float | None) -> tuple[str, str, str]:
    mean, low, high = difference
    return f"{mean:+.2f}", f"{low:+.2f} to {high:+.2f}", "" if p_holm is None else f"{p_holm:.3f}"


def gap_figure(compared: Comparison, methods: Sequence[str]) -> Figure | None:
    """DynaBERT minus every method; None where nothing was paired.

    :param methods: all that have a colour, in their order.
    """
    if not compared.paired:
        return None
    rows = [row for row, _ in compared.paired]
    data = tables.table(
        {
            "method": shown(row.method),
            "point": row.point,
            "where": f"{row.share:.0%}",
            "difference": difference.mean,
            "low": difference.low,
            "high": difference.high,
            "p_holm": row.p_holm,
        }
        for row, difference in compared.paired
    )
    ours = "DynaBERT in cascades" if compared.ours == CASCADE else "DynaBERT"
    chart = _Chart("gaps", "method", "method", methods, f"{ours} minus the method, points", ("method", "point"))
    lines = tuple(
        (
            *(shown(row.method), f"{row.share:.0%}", row.point, *row.told),
            *(rate_text(row.lr, at_edge=row.at_edge), f"{row.n_steps:,}"),
            *_numbers(difference, row.p_holm),
        )
        for row, difference in compared.paired
    )
    missing = ", ".join(f"{shown(row.method)} at {row.share:.0%}" for row in compared.unpaired)
    trainings = Trainings.of(compared)
    left_out = "; ".join(f"{method}, for {why}" for method, why in compared.left_out.items())
    spent = ("FLOPs spent", "time, one by one", "time, by 32", "learning rate", "steps")
    headers = ("method", "FLOPs at most", "point", "metric", *spent, f"{ours} minus it", "95 % interval")
    places = tuple(dict.fromkeys(data["where"]))
    return Figure(
        name="gaps",
        title="DynaBERT beside other methods",
        caption=f"How much better {ours} is, in points of the main metric, where both may cost at most this share of "
        "the full network's FLOPs; right of the line DynaBERT is ahead. Points are chosen on the select rows; what "
        "they spend on the validation rows, and the time of an input in the full network's, stand in the numbers. "
        f"{trainings}. {_how_read(trainings)}"
        + (f" Nothing to compare: {missing}." if missing else "")
        + (f" Left out: {left_out}." if left_out else "")
        + ramped(dict.fromkeys(row.method for row in rows))
        + _edge(rows),
        spec=spec_of(chart.of(data)),
        data={"gaps": data, "zero": {"x": [0]}},
        controls=unless_one("FLOPs at most", tuple(Option(where, {"where": where}) for where in places)),
        tables=(TextTable("All differences", (*headers, "p (Holm)"), lines),),
        images={f"gaps-{where.rstrip('%')}": {"where": where} for where in places},
    )


def _named(effect: Effect) -> str:
    beside = "" if effect.against == BASE else f" beside {effect.against}"
    return f"{effect.factor}: {effect.variant}{beside}"


def _edge(rows: Sequence[Standing] | Sequence[Effect]) -> str:
    """What the star of a rate means, where there is one."""
    return " *: the lowest or highest rate that was tried." if any(row.at_edge for row in rows) else ""


def ablation_figure(ablated: Ablated) -> Figure | None:
    """What each variant changes; None where nothing was varied."""
    if not ablated.effects:
        return None
    effects = sorted(ablated.effects, key=lambda row: row.where != MEAN)
    data = tables.table({**vars(row), "name": _named(row)} for row in effects)
    factors = list(dict.fromkeys(data["factor"]))
    chart = _Chart("ablations", "name", "factor", factors, "difference, points", ("factor", "variant", "where"))
    places = tuple(dict.fromkeys(data["where"]))
    names = {where: "mean over the grid" if where == MEAN else where for where in places}
    lines = tuple(
        (
            *(row.factor, row.variant, row.against, names[row.where]),
            *_numbers(Difference(row.difference, row.low, row.high), row.p_holm),
            rate_text(row.lr, at_edge=row.at_edge),
        )
        for row in effects
    )
    headers = ("factor", "variant", "minus", "size", "difference", "95 % interval", "p (Holm)", "learning rate")
    return Figure(
        name="ablations",
        title="Ablations",
        caption="How much better a variant is than the base, or than what it is said to stand beside, in points of "
        "the main metric; right of the line it is ahead. "
        f"{ablated.trainings}. {_how_read(ablated.trainings)}{_edge(effects)}",
        spec=spec_of(chart.of(data)),
        data={"ablations": data, "zero": {"x": [0]}},
        controls=unless_one("Size", tuple(Option(names[where], {"where": where}) for where in places)),
        tables=(TextTable("All differences", headers, lines),),
        images={f"ablations-{where}": {"where": where} for where in places},
    )
