"""The figure of a comparison: what each method reaches for how much, a panel for each task."""

from typing import TYPE_CHECKING

from dynabert.studies.compare import CASCADE, OURS, Comparison

if TYPE_CHECKING:
    import altair

LOOKS = {
    OURS: ("#0072b2", "circle"),
    CASCADE: ("#56b4e9", "square"),
    "deebert": ("#a06a00", "triangle-down"),
    "fastbert": ("#d55e00", "triangle-up"),
    "layerdrop": ("#009e73", "diamond"),
    "layerdrop-0.5": ("#44aa99", "diamond"),
    "layerdrop-masked": ("#117733", "diamond"),
    "layerdrop-validated": ("#999933", "diamond"),
    "first-layers": ("#555555", "cross"),
    "first-layers-distilled": ("#999999", "cross"),
    "alone": ("#cc79a7", "triangle-right"),
}
"""Colour and shape of each method; told apart without colour too, but for those of one kind."""

_ROOM = 0.6
"""How far below our worst size a panel reaches, in what lies between our worst and the best of all."""

Point = dict[str, str | float | bool]


def figure(comparison: Comparison) -> "altair.ConcatChart":
    """The main metric on the validation rows against the mean FLOPs of an input, of the first seed.

    A point is a size, a number of layers or a threshold; the line of a method joins its front, which nothing else of it
    beats. Dashed is the teacher; points far below ours are cut off. Of several runs a panel for each.
    """
    import altair as alt

    tasks = comparison.tasks or (comparison,)
    seed = f"seed {comparison.seeds[0]}, " if len(comparison.seeds) > 1 else ""
    title = f"{seed}{comparison.training_flops / 1e12:.3g} TFLOPs of training each"
    title += ", in the mean of the tasks" if len(tasks) > 1 else ""
    return alt.concat(*map(_panel, tasks), columns=2).properties(title=title)


def _panel(task: Comparison) -> "altair.LayerChart | altair.FacetChart":
    """One task."""
    import altair as alt

    points = [point for method in task.sweeps for point in _points(task, method)]
    methods = [name for name in LOOKS if name in task.sweeps]
    colours, shapes = zip(*(LOOKS[name] for name in methods), strict=True)
    best = max(task.full, *(float(point["metric"]) for point in points))
    worst = min(float(point["metric"]) for point in points if point["method"] == task.ours)
    cheapest = min(float(point["flops"]) for point in points)
    lowest = worst - _ROOM * (best - worst)
    base = alt.Chart().encode(
        x=alt.X(
            "flops:Q",
            title="encoder FLOPs of an input, % of the full network's",
            scale=alt.Scale(type="log", domain=[0.9 * cheapest, 110], nice=False),
            axis=alt.Axis(values=[3.125, 6.25, 12.5, 25, 50, 75, 100], format="~g"),
        ),
        y=alt.Y(
            "metric:Q",
            title=f"{task.metric} x 100",
            scale=alt.Scale(domain=[lowest, best + 0.05 * (best - lowest)], nice=False, zero=False),
        ),
        color=alt.Color("method:N", title=None, scale=alt.Scale(domain=methods, range=colours)),
    )
    shape = alt.Shape("method:N", title=None, scale=alt.Scale(domain=methods, range=shapes))
    tooltip = [alt.Tooltip("method:N"), alt.Tooltip("point:N")]
    tooltip += [alt.Tooltip(f"{name}:Q", format=".1f") for name in ("flops", "metric")]
    teacher = alt.Chart(alt.InlineData(values=[{"full": task.full}])).mark_rule(strokeDash=[4, 4], color="#777777")
    layers = [
        teacher.encode(y="full:Q"),
        base.transform_filter("datum.front").mark_line(clip=True),
        base.mark_point(clip=True, filled=True, size=45, opacity=0.8).encode(shape=shape, tooltip=tooltip),
    ]
    data = alt.InlineData(values=points)
    return alt.layer(*layers, data=data).properties(width=330, height=260, title=task.task)


def _points(task: Comparison, method: str) -> list[Point]:
    """The points of a method, in %."""
    sweep = task.sweeps[method]
    front = {row.subnet for row in sweep.front("flops").rows}
    return [
        {
            "method": method,
            "point": row.subnet,
            "flops": 100 * row.cost.flops / task.full_flops,
            "metric": 100 * row.metric,
            "front": row.subnet in front,
        }
        for row in sweep.rows
    ]
