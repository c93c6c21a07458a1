"""The numbers behind each figure, as tables by column: what the page draws."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from dynabert.choice import unbeaten
from dynabert.errors import SettingError
from dynabert.statistics import ROW_METRICS
from dynabert.studies.patterns import AttentionStudy
from dynabert.subnet import Subnet
from dynabert.sweep import COSTS, Sweep

Table: TypeAlias = dict[str, list[Any]]
"""Columns of one length, by name."""

UNITS = {"n_params": 1e6, "flops": 1e9, "latency_ms": 1.0, "file_bytes": 1e6, "peak_bytes": 1e6}
"""What a cost is divided by: parameters and bytes are shown in millions, FLOPs in thousands of millions."""

MAX_POINTS, MAX_ALL_POINTS = 300, 12_000
"""Points of a training curve, and of all of them together, at most."""

NEURON_POINTS = 150


def table(rows: Iterable[dict[str, Any]]) -> Table:
    """Rows as columns; the rows have the same keys."""
    rows = list(rows)
    return {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}


def rows_of(columns: Table) -> list[dict[str, Any]]:
    """Columns as rows."""
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def digits(value: float | None, n: int = 4) -> float | None:
    """A number with so many significant digits: what a page holds of it."""
    return None if value is None else float(f"{value:.{n}g}")


def of_grid(name: str) -> tuple[float, float] | None:
    """Width and depth of a Subnet's name; None where it is not of that form, or of another method."""
    try:
        subnet = Subnet.parse(name)
    except SettingError:
        return None
    return None if subnet.width is None else (subnet.width, subnet.depth)


TIMES = ("time_alone", "time_together")
"""Time of an input of the validation rows, as a share of the full network's in %: one by one, and in batches of 32."""


def fronts(sweeps: dict[str, Sweep], times: Mapping[str, Mapping[str, tuple[float, float]]] | None = None) -> Table:
    """Every measured row of every method, with its costs, and for each cost whether it is on its method's front.

    :param times: those of a comparison, by what methods are called; None where `TIMES` are not wanted.
    """
    rows: list[dict[str, Any]] = []
    for method, sweep in sweeps.items():
        measured = [cost for cost in COSTS if all(getattr(row.cost, cost) is not None for row in sweep.rows)]
        best = {cost: {row.subnet for row in sweep.front(cost).rows} for cost in measured}
        taken = {} if times is None else times.get(method, {})
        timed = [row for row in sweep.rows if row.subnet in taken]
        fastest = [unbeaten([row.metric for row in timed], [taken[row.subnet][i] for row in timed]) for i in (0, 1)]
        on_front = {row.subnet: ends for row, *ends in zip(timed, *fastest, strict=True)}
        for row in sweep.rows:
            shown: dict[str, Any] = {
                "method": method,
                "size": row.subnet,
                "layers": f"{row.n_layers:.3g} of {row.of_layers}",
                "metric": digits(row.metric, 5),
                "low": digits(row.quality.metric_low, 5),
                "high": digits(row.quality.metric_high, 5),
            }
            for cost in COSTS:
                known = cost in measured
                shown[cost] = digits(getattr(row.cost, cost) / UNITS[cost], 5) if known else None
                shown[f"front_{cost}"] = known and row.subnet in best[cost]
            for place, name in enumerate(() if times is None else TIMES):
                known = row.subnet in taken
                shown[name] = digits(100 * taken[row.subnet][place], 4) if known else None
                shown[f"front_{name}"] = known and on_front[row.subnet][place]
            rows.append(shown)
    return table(rows)


def measures(sweep: Sweep) -> dict[str, str]:
    """What the grid can show of a Subnet: keys and what they mean."""
    agreement = sweep.context.agreement
    told = f"{agreement.name} with the teacher" + ("" if agreement.is_correlation else ", %")
    more = {"kept": "kept of the teacher's metric, %", "agreement": told}
    return {name: name for name in sweep.rows[0].quality.metrics} | more


def grid(sweep: Sweep) -> Table:
    """One row for each Subnet of the grid and measure: its value, how it is written, its place between the extremes."""
    found = [(place, row) for row in sweep.rows if (place := of_grid(row.subnet)) is not None]
    rows = []
    for measure in measures(sweep):
        values = [
            {**row.quality.metrics, "kept": row.quality.kept, "agreement": row.quality.agreement}[measure]
            for _, row in found
        ]
        known = [value for value in values if value is not None]
        low, high = min(known, default=0.0), max(known, default=0.0)
        percent = measure == "kept" or (measure == "agreement" and not sweep.context.agreement.is_correlation)
        for ((width, depth), row), value in zip(found, values, strict=True):
            if value is not None:
                rows.append(
                    {
                        "measure": measure,
                        "size": row.subnet,
                        "width": f"{width:g}",
                        "depth": f"{depth:g}",
                        "layers": f"{row.n_layers:.3g} of {row.of_layers}",
                        "value": digits(value, 5),
                        "text": f"{100 * value:.1f}" if percent else f"{value:.3f}",
                        "share": digits((value - low) / (high - low), 3) if high > low else 0.5,
                    }
                )
    return table(rows)


def thin(steps: Sequence[int], values: np.ndarray, limit: int) -> tuple[list[int], np.ndarray]:
    """At most `limit` points of a curve: the first, then means of stretches of equal length, at their last steps.

    :param steps: ascending, shape (points,).
    :param values: shape (points, terms); NaN where there is none.
    :param limit: 2 or more.
    :return: steps and values; those given where they are few enough.
    """
    if len(steps) <= limit:
        return list(steps), values
    parts = [np.arange(1), *np.array_split(np.arange(1, len(steps)), limit - 1)]
    kept = np.stack([_mean(values[part]) for part in parts])
    return [steps[part[-1]] for part in parts], kept


def _mean(values: np.ndarray) -> np.ndarray:
    """Column means of the values that there are."""
    there = np.isfinite(values)
    totals = np.where(there, values, 0.0).sum(axis=0)
    return np.divide(totals, there.sum(axis=0), out=np.full(len(totals), np.nan), where=there.any(axis=0))


def curves(metrics: list[dict[str, Any]]) -> tuple[Table, dict[str, list[str]]]:
    """The training losses, thinned out.

    :param metrics: lines of the training log.
    :return: a row for each stage, Subnet and point, with a column for each term; and the terms of each stage.
    """
    series: dict[tuple[str, str], list[tuple[int, dict[str, float | None]]]] = {}
    terms: dict[str, list[str]] = {}
    for line in metrics:
        for subnet, losses in (line.get("losses") or {}).items():
            series.setdefault((line["stage"], subnet), []).append((line["step"], losses))
            known = terms.setdefault(line["stage"], [])
            known += [term for term in losses if term not in known]
    names = list(dict.fromkeys(term for stage in terms.values() for term in stage))
    limit = max(2, min(MAX_POINTS, MAX_ALL_POINTS // max(1, len(series))))
    rows = []
    for (stage, subnet), points in series.items():
        points.sort(key=lambda point: point[0])
        values = np.array([[losses.get(term) for term in names] for _, losses in points], dtype=np.float64)
        for step, kept in zip(*thin([step for step, _ in points], values, limit), strict=True):
            place = of_grid(subnet)
            rows.append(
                {
                    "stage": stage,
                    "size": subnet,
                    "width": subnet if place is None else f"{place[0]:g}",
                    "depth": "" if place is None else f"{place[1]:g}",
                    "step": step,
                    **{
                        term: digits(float(value)) if np.isfinite(value) else None
                        for term, value in zip(names, kept, strict=True)
                    },
                }
            )
    return table(rows), terms


def select_scores(metrics: list[dict[str, Any]]) -> Table:
    """The scores on the `select` rows, at steps counted on over the stages."""
    lengths: dict[str, int] = {}
    for line in metrics:
        steps = line.get("n_steps") or line.get("step") or 0
        lengths[line["stage"]] = max(lengths.get(line["stage"], 0), steps)
    starts = dict(zip(lengths, np.cumsum([0, *lengths.values()]).tolist(), strict=False))
    return table(
        {
            "stage": line["stage"],
            "step": line["step"],
            "step_of_run": starts[line["stage"]] + line["step"],
            "score": digits(line["select_score"], 5),
            "best": bool(line.get("best")),
        }
        for line in metrics
        if line.get("select_score") is not None
    )


def heads(scores: np.ndarray) -> Table:
    """The importance of each head, and its share of that of the most important head of its layer.

    :param scores: shape (layers, heads).
    """
    return table(
        {"layer": layer, "head": head, "score": digits(float(score)), "share": digits(_share(score, row.max()), 3)}
        for layer, row in enumerate(scores)
        for head, score in enumerate(row)
    )


def patterns(study: AttentionStudy) -> Table:
    """Each pattern of the teacher with the closest head of each size, by the size's name as the measure."""
    return table(
        {
            "measure": row.subnet,
            "layer": place // study.n_heads,
            "head": place % study.n_heads,
            "share": digits(best, 3),
            "text": f"{100 * best:.0f}",
            "nearest": f"layer {layer}, head {head}",
        }
        for row in study.rows
        for place, (best, (layer, head)) in enumerate(zip(row.matching.best, row.matching.nearest, strict=True))
    )


def neurons(scores: np.ndarray, limit: int = NEURON_POINTS) -> Table:
    """The importance of the neurons of each layer in descending order, thinned out.

    :param scores: shape (layers, neurons).
    :return: `part` is the share of the neurons up to there in %; `share` is of the most important neuron of the layer,
        and `total` what the neurons up to there hold of the layer's importance, both in %.
    """
    rows = []
    for layer, row in enumerate(scores):
        descending = np.sort(row.astype(np.float64))[::-1]
        totals = np.cumsum(descending)
        for place in np.unique(np.linspace(0, len(row) - 1, min(limit, len(row))).round().astype(int)).tolist():
            rows.append(
                {
                    "layer": layer,
                    "part": digits(100 * (place + 1) / len(row), 4),
                    "share": digits(100 * _share(descending[place], descending[0]), 4),
                    "total": digits(100 * _share(totals[place], totals[-1]), 4),
                }
            )
    return table(rows)


def neurons_for(scores: np.ndarray, share: float) -> list[float]:
    """For each layer the share of its neurons, the most important ones, that hold a share of its importance."""
    needed = []
    for row in scores.astype(np.float64):
        totals = np.cumsum(np.sort(row)[::-1])
        needed.append(float(1 + np.searchsorted(totals, share * totals[-1])) / len(row))
    return needed


def _share(value: float, of: float) -> float:
    return float(value / of) if of > 0 else 0.0


PAIRED = {"agreement": "agreement, %", "flips": "row wrong, column right, %"}
"""What is said of a pair of sizes."""


def pairs(labels: np.ndarray, logits: dict[str, np.ndarray]) -> Table:
    """How the predictions of each pair of sizes compare.

    :param labels: shape (rows,): class numbers, or scores.
    :param logits: (rows, n_labels) by name.
    :return: for `smaller` and `larger`, in the order given: `agreement`, the share of rows with the same class in % (of
        a regression Pearson's correlation, times 100), and `flips`, the share of rows on which `smaller` is wrong and
        `larger` right (none of a regression). `share` is the place between the extremes off the diagonal.
    """
    rows = []
    for measure, values in _paired(labels, logits).items():
        apart = values[~np.eye(len(values), dtype=bool)]
        low, high = (apart.min(), apart.max()) if len(apart) else (0.0, 0.0)
        for i, smaller in enumerate(logits):
            for j, larger in enumerate(logits):
                value = float(values[i, j])
                shown = {"measure": measure, "smaller": smaller, "larger": larger, "value": digits(100 * value)}
                share = 0.5 if high == low else float(np.clip((value - low) / (high - low), 0, 1))
                rows.append({**shown, "text": f"{100 * value:.1f}", "share": digits(share, 3)})
    return table(rows)


def _paired(labels: np.ndarray, logits: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The two matrices, rows the smaller, columns the larger."""
    if labels.dtype.kind == "f":
        scores = [values.reshape(-1) for values in logits.values()]
        return {"agreement": np.array([[ROW_METRICS["pearson"](b, a) for b in scores] for a in scores])}
    classes = np.stack([values.argmax(axis=1) for values in logits.values()])
    right = classes == labels
    agreement = (classes[:, None] == classes[None]).mean(axis=2)
    flips = (~right[:, None] & right[None]).mean(axis=2)
    return {"agreement": agreement, "flips": flips}


def matrix(columns: Table, measure: str) -> Iterator[tuple[str, list[str]]]:
    """One measure of `pairs` as rows of text."""
    found = [row for row in rows_of(columns) if row["measure"] == measure]
    for name in dict.fromkeys(row["smaller"] for row in found):
        yield name, [row["text"] for row in found if row["smaller"] == name]
