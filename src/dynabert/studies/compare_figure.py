"""The figure of a comparison: what each method reaches for how much, a panel for each task."""

from typing import TYPE_CHECKING

from dynabert.baselines import METHODS
from dynabert.studies.standings import CASCADE, OURS, OWN, Comparison

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
"""How far below DynaBERT's worst point a panel reaches, in what lies between that and the best of all."""

_HOW = (
    "Lines: the best of each method for as much or less, in hindsight, on the validation rows.",
    "Large marks: what was chosen on the select rows, at half and at a quarter. Dashed: the teacher.",
)

Point = dict[str, str | float | bool]


def figure(comparison: Comparison) -> "altair.ConcatChart":
    """The main metric on the validation rows against the mean FLOPs of an input, of the first seed.

    A point is a size, a number of layers or a threshold; the steps of a method are what it reaches for as much or less,
    the large marks what the comparison chose. Of several runs a panel for each. Points far below DynaBERT's are cut
    off, and how many is said.
    """
    import altair as alt

    tasks = comparison.tasks or (comparison,)
    drawn = {task.seeds[0] for task in tasks}
    seed = f"seed {comparison.seeds[0]}, " if len(comparison.seeds) > 1 and len(drawn) == 1 else ""
    title = f"{seed}{comparison.training_flops / 1e12:.3g} TFLOPs of training each"
    own = [name for name in LOOKS if name in tasks[0].sweeps and name in METHODS and METHODS[name].from_encoder]
    if own and comparison.teacher_flops:
        title += f" ({', '.join(own)}: {comparison.teacher_flops / 1e12:.3g} more, those of the teacher)"
    title += ", in the mean of the tasks" if len(tasks) > 1 else ""
    panels = [_panel(task, f", seed {task.seeds[0]}" if len(drawn) > 1 else "") for task in tasks]
    return alt.concat(*panels, columns=2).properties(title=alt.TitleParams(title, subtitle=list(_HOW), anchor="start"))


def _panel(task: Comparison, seed: str) -> "altair.LayerChart | altair.FacetChart":
    """One task.

    :param seed: what its title says of the one that is drawn.
    """
    import altair as alt

    points = [point for method in task.sweeps for point in _points(task, method)]
    methods = [name for name in LOOKS if name in task.sweeps]
    colours, shapes = zip(*(LOOKS[name] for name in methods), strict=True)
    costs = [float(point["flops"]) for point in points]
    full = 100 * task.sweeps[methods[0]].context.reference  # of the same seed
    best = max(full, *(float(point["metric"]) for point in points))
    worst = min(float(point["metric"]) for point in points if point["method"] in OWN)
    lowest = worst - _ROOM * (best - worst)
    n_below = sum(float(point["metric"]) < lowest for point in points)
    base = alt.Chart().encode(
        x=alt.X(
            "flops:Q",
            title="encoder FLOPs of an input, % of the full network's",
            scale=alt.Scale(type="log", domain=[0.9 * min(costs), 1.1 * max(100, *costs)], nice=False),
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
    teacher = alt.Chart(alt.InlineData(values=[{"full": full}])).mark_rule(strokeDash=[4, 4], color="#777777")
    chosen = base.transform_filter("datum.chosen").mark_point(clip=True, size=170, strokeWidth=2)
    layers = [
        teacher.encode(y="full:Q"),
        base.transform_filter("datum.front").mark_line(clip=True, interpolate="step-after", opacity=0.7),
        base.mark_point(clip=True, filled=True, size=40, opacity=0.8).encode(shape=shape, tooltip=tooltip),
        chosen.encode(shape=shape, tooltip=tooltip),
    ]
    below = f", {n_below} point{'s' if n_below > 1 else ''} below" if n_below else ""
    data = alt.InlineData(values=points)
    return alt.layer(*layers, data=data).properties(width=330, height=260, title=f"{task.task}{seed}{below}")


def _points(task: Comparison, method: str) -> list[Point]:
    """The points of a method, in %."""
    sweep = task.sweeps[method]
    front = {row.subnet for row in sweep.front("flops").rows}
    chosen = {row.point for row in task.standings if row.method == method}
    return [
        {
            "method": method,
            "point": row.subnet,
            "flops": 100 * row.cost.flops / task.full_flops,
            "metric": 100 * row.metric,
            "front": row.subnet in front,
            "chosen": row.subnet in chosen,
        }
        for row in sweep.rows
    ]
