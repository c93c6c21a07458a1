"""Budgets are answered as trying every row by hand answers them, and what is infeasible names the nearest row."""

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_studies import made_sweep

from dynabert.errors import SettingError
from dynabert.measurement import LatencySettings, Measurement, Timing
from dynabert.sweep import Sweep

SHAPES = ((1, 16), (1, 64), (8, 16), (8, 64))


def deployed(seed: int = 0, n: int = 12) -> Sweep:
    """A sweep of a deployed form whose costs do not fall together."""
    draw = random.Random(seed)
    like = made_sweep(latency=True).rows[0]
    rows = []
    for place in range(n):
        timings = tuple(
            Timing(batch, seq, median_ms=draw.uniform(0.5, 2) * batch * seq / 32, p95_ms=9.0, spread=0.1)
            for batch, seq in SHAPES
        )
        cost = replace(
            like.cost,
            n_params=draw.randrange(1, 30) * 10**6,
            flops=draw.randrange(1, 30) * 10**8,
            latency_ms=timings[0].median_ms,
            timings=timings,
            file_bytes=draw.randrange(1, 30) * 10**6,
            peak_bytes=draw.randrange(1, 30) * 10**6,
        )
        metrics = {"accuracy": draw.randrange(80, 95) / 100}
        quality = replace(like.quality, metrics=metrics)
        loads = draw.choice(["transformers", "dynabert or trust_remote_code"])
        rows.append(replace(like, subnet=f"row{place}", cost=cost, quality=quality, loads_with=loads))
    latency = LatencySettings(batch=(1, 8), seq=(16, 64), engine="openvino", dtype="int8")
    return Sweep(tuple(rows), replace(made_sweep().context, latency=latency))


SWEEP = deployed()
QUESTIONS: list[tuple[dict[str, int], dict[str, object]]] = [
    ({}, {}),
    ({}, {"max_params": 15e6}),
    ({}, {"max_flops": 1.5e9}),
    ({}, {"max_latency_ms": 0.6}),
    ({"seq": 64}, {"max_latency_ms": 2.0}),
    ({"batch": 8, "seq": 64}, {"max_latency_ms": 20.0}),
    ({"batch": 8}, {"min_throughput": 2000.0}),
    ({}, {"min_throughput": 1000.0, "max_file_mb": 20.0}),
    ({}, {"max_file_mb": 12.0}),
    ({}, {"max_memory_mb": 12.0}),
    ({}, {"min_metric": 0.88}),
    ({}, {"min_metric": 0.85, "max_params": 20e6}),
    ({"seq": 64}, {"min_metric": 0.82, "max_latency_ms": 3.0, "must_load": "transformers"}),
    ({}, {"must_load": "transformers"}),
    ({}, {"must_load": "onnx", "max_flops": 1e9}),
    ({}, {"must_load": "openvino", "max_memory_mb": 20.0, "max_file_mb": 20.0}),
    ({}, {"must_load": "dynabert", "max_params": 8e6}),
    ({}, {"max_params": 5e5}),  # and from here on: nothing fits
    ({"batch": 8, "seq": 64}, {"max_latency_ms": 1.0, "min_metric": 0.9}),
    ({}, {"min_throughput": 1e6}),
    ({}, {"min_metric": 0.99, "must_load": "transformers"}),
]


def has_of(row: Measurement, shape: tuple[int, int]) -> dict[str, float]:
    """What a row has of each bound."""
    cost, latency_ms = row.cost, next(t.median_ms for t in row.cost.timings if (t.batch, t.seq) == shape)
    return {
        "max_params": cost.n_params,
        "max_flops": cost.flops,
        "max_latency_ms": latency_ms,
        "max_file_mb": cost.file_bytes / 1e6,
        "max_memory_mb": cost.peak_bytes / 1e6,
        "min_throughput": 1000 * shape[0] / latency_ms,
        "min_metric": row.metric,
    }


def distance(row: Measurement, shape: tuple[int, int], budget: dict[str, object]) -> float:
    """By how much a row misses a budget: the shares of the bounds by which it is outside them, together."""
    has, missed = has_of(row, shape), 0.0
    for name, bound in budget.items():
        if name == "must_load":
            missed += math.inf if bound == "transformers" and row.loads_with != "transformers" else 0.0
        else:
            over = has[name] - bound if name.startswith("max") else bound - has[name]
            missed += max(0.0, over) / bound
    return missed


def costs(row: Measurement, shape: tuple[int, int], budget: dict[str, object]) -> tuple[float, ...]:
    """What decides among equally good rows: the limited costs in their order, then the others by their weight."""
    has = has_of(row, shape)
    order = ("max_params", "max_flops", "max_latency_ms", "max_file_mb", "max_memory_mb")
    weight = ("max_latency_ms", "max_flops", "max_params", "max_file_mb", "max_memory_mb")
    limited = [name for name in order if name in budget]
    return tuple(has[name] for name in (*limited, *(name for name in weight if name not in limited)))


@pytest.mark.parametrize(("shape", "budget"), QUESTIONS)
def test_budget_questions_are_answered_as_by_brute_force(shape: dict[str, int], budget: dict[str, object]) -> None:
    full = (shape.get("batch", 1), shape.get("seq", 16))
    fitting = [row for row in SWEEP.rows if distance(row, full, budget) == 0]
    sweep = SWEEP.at(**shape)
    if not fitting:
        nearest = min(SWEEP.rows, key=lambda row: distance(row, full, budget))
        with pytest.raises(SettingError, match=rf"no Subnet fits .* the nearest is {nearest.subnet}: set "):
            sweep.pick(**budget)
        return
    picked = sweep.pick(**budget)
    cheapest = set(budget) == {"min_metric"}
    best = min(fitting, key=lambda row: (0 if cheapest else -row.metric, *costs(row, full, budget)))
    assert picked.subnet == best.subnet


def test_of_equally_good_rows_the_cheapest_is_taken_and_limited_costs_come_first() -> None:
    def row(name: str, n_params: int, ms: float) -> Measurement:
        known = SWEEP.rows[0]
        timings = tuple(replace(timing, median_ms=ms) for timing in known.cost.timings)
        return replace(known, subnet=name, cost=replace(known.cost, n_params=n_params, latency_ms=ms, timings=timings))

    rows = (row("slow", 1_000_000, 9.0), row("quick", 2_000_000, 3.0), row("worst", 3_000_000, 9.0))
    sweep = replace(SWEEP, rows=rows)
    assert sweep.pick(max_latency_ms=100.0).subnet == "quick"
    assert sweep.pick(max_params=1e9).subnet == "slow"
    assert sweep.pick(max_flops=1e12).subnet == "quick", "latency weighs most where it is not limited"


def test_questions_are_of_both_kinds() -> None:
    answers = [
        any(distance(row, (s.get("batch", 1), s.get("seq", 16)), b) == 0 for row in SWEEP.rows) for s, b in QUESTIONS
    ]
    assert len(answers) >= 20 and answers.count(False) == 4


@given(seed=st.integers(0, 200), limit=st.floats(0.3, 2.0), metric=st.floats(0.8, 0.95))
@settings(max_examples=60, deadline=None)
def test_what_the_message_says_to_set_is_enough(seed: int, limit: float, metric: float) -> None:
    sweep, budget = deployed(seed, n=4), {"max_latency_ms": limit, "min_metric": metric}
    try:
        sweep.pick(**budget)
    except SettingError as error:
        for part in str(error).rpartition(": set ")[2].removesuffix(" for it").split(" and "):
            name, _, value = part.partition(" to ")
            budget[name] = float(value)
        sweep.pick(**budget)


def test_a_shape_that_was_not_measured_is_refused() -> None:
    with pytest.raises(SettingError, match="4 x 16 tokens was not measured, but of batch 1, 8 at seq 16, 64"):
        SWEEP.at(batch=4)
    with pytest.raises(SettingError, match="has no latency"):
        made_sweep(latency=False).at(batch=1)
    with pytest.raises(SettingError, match="again with --batch 1,8,4 --seq 16,64 --dtype int8 --engine openvino"):
        SWEEP.at(batch=4)  # what was measured stays
    at = SWEEP.at(batch=8, seq=64)
    assert at.context.seq_len == SWEEP.context.seq_len, "FLOPs are those of the same length as before"
    assert at.context.latency is not None and at.context.latency.shapes == ((8, 64),)
    assert [row.cost.latency_ms for row in at.rows] == [row.cost.timings[3].median_ms for row in SWEEP.rows]


def test_loading_that_no_size_offers_says_which_would() -> None:
    rows = tuple(replace(row, loads_with="dynabert or trust_remote_code") for row in SWEEP.rows)
    with pytest.raises(
        SettingError, match="no Subnet of this Sweep loads with transformers; sizes that keep all heads"
    ):
        replace(SWEEP, rows=rows).pick(must_load="transformers")
    with pytest.raises(SettingError, match="known: transformers, dynabert, onnx, openvino"):
        SWEEP.pick(must_load="tensorrt")
    with pytest.raises(SettingError, match="max_params nan is no finite number"):
        SWEEP.pick(max_params=float("nan"))
    with pytest.raises(SettingError, match="min_metric inf is no finite number"):
        SWEEP.pick(min_metric=float("inf"))


def test_a_cost_that_was_not_measured_names_what_measures_it() -> None:
    with pytest.raises(SettingError, match="no file_bytes; measure again on an engine"):
        made_sweep().pick(max_file_mb=1e3)
