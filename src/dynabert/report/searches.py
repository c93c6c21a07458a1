"""The figure of searches: the best Subnet within a budget that each has found, beside the best of the uniform grid."""

from collections.abc import Mapping
from typing import Any

import altair as alt

from dynabert.report import tables
from dynabert.report.figure import WIDE, Figure, Option, TextTable, nominal_tips, number, param, spec_of, unless_one
from dynabert.report.studies import Searched
from dynabert.search import UNIFORM
from dynabert.search.result import Standing


def search_figure(searches: Mapping[str, Searched]) -> Figure | None:
    """What every search chose, a line each, for one budget at a time; None where there was none.

    :param searches: by budget.
    """
    data = tables.table(row for budget, found in searches.items() for row in _rows(budget, found))
    if not data:
        return None
    budgets, (metric,) = tuple(dict.fromkeys(data["budget"])), {found.metric for found in searches.values()}
    return Figure(
        name="search",
        title="Searched sizes",
        caption="Heads and neurons chosen for each layer on the select rows, within a budget, and nothing trained for "
        f"it; shown is the {metric} of the validation rows, which the search did not look at. Ticks mark the best row "
        "of the uniform grid within the budget; bars are paired 95 % intervals of the gain over that, over rows of one "
        "training.",
        spec=spec_of(_chart(data, metric)),
        data={"search": data},
        controls=unless_one("Budget", tuple(Option(budget, {"budget": budget}) for budget in budgets)),
        tables=tuple(_numbers(budget, searches[budget]) for budget in budgets),
        images={f"search-{budget}": {"budget": budget} for budget in budgets},
    )


def _rows(budget: str, found: Searched) -> list[dict[str, Any]]:
    """A row for each choice; one without a gain stands beside itself, so that every line has its tick and bar."""
    uniform = next((row.validation for row in found.standings if row.how == UNIFORM), None)
    rows = []
    for row in found.standings:
        beside = row.validation if uniform is None else uniform
        ends = (row.validation,) * 2 if row.gain is None else (beside + row.gain.low, beside + row.gain.high)
        numbers = dict(zip(("metric", "beside", "low", "high"), (row.validation, beside, *ends), strict=True))
        said = {"gain": _gain(row), "FLOPs": f"{row.share:.1%}"}
        named = {"budget": budget, "choice": row.how, "size": row.subnet, **said}
        rows.append({**named, **{name: tables.digits(value, 5) for name, value in numbers.items()}})
    return rows


def _gain(row: Standing) -> str:
    return "-" if row.gain is None else f"{row.gain.mean:+.2f} ({row.gain.low:+.2f} to {row.gain.high:+.2f})"


def _chart(data: tables.Table, metric: str) -> alt.LayerChart | alt.FacetChart:
    choices = list(dict.fromkeys(data["choice"]))
    title, scale = f"{metric} x 100", alt.Scale(zero=False, padding=12)
    base = (
        alt.Chart(alt.NamedData("search"))
        .transform_filter("datum.budget == budget")
        .encode(
            y=alt.Y("choice:N", title=None, sort=choices),
            color=alt.Color("choice:N", scale=alt.Scale(domain=choices), legend=None),
        )
    )
    bars = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title=title, scale=scale), x2="high:Q")
    ticks = base.mark_tick(thickness=2, size=18).encode(x=alt.X("beside:Q", title=title), color=alt.value("#7c828a"))
    tooltip = [
        *nominal_tips("choice", "size", "FLOPs"),
        alt.Tooltip("metric:Q", title=title, format=".2f"),
        *nominal_tips("gain"),
    ]
    points = base.mark_point(size=70, filled=True, opacity=1).encode(x=alt.X("metric:Q", title=title), tooltip=tooltip)
    return (
        alt.layer(ticks, bars, points)
        .add_params(param("budget", data["budget"][0]))
        .properties(**WIDE, height=28 * len(choices) + 14)
    )


def _numbers(budget: str, found: Searched) -> TextTable:
    caption = f"{budget}: at most {number(found.limit)}; {found.n_tried:,} Subnets scored in {found.seconds:,.0f} s"
    timed = found.measured_ms
    costs = ("predicted, ms", "measured, ms") if timed else ("cost",)
    metrics = (f"select, {found.metric} x 100", "validation", "gain (95 % interval)")
    rows = tuple(
        (
            *(row.how, number(row.cost), *([number(timed.get(row.how))] if timed else ()), f"{row.share:.1%}"),
            *(f"{row.select:.2f}", f"{row.validation:.2f}", _gain(row), row.subnet),
        )
        for row in found.standings
    )
    return TextTable(caption, ("choice", *costs, "FLOPs", *metrics, "size"), rows)
