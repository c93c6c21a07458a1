"""`Sweep.front` holds exactly the rows that no other row beats, and `Sweep.pick` never leaves the front."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynabert.sweep import Context, Cost, CostName, LatencySettings, Machine, Measurement, Quality, Sweep

CONTEXT = Context(
    task="sst2",
    metric="accuracy",
    n_rows=100,
    reference=0.9,
    precision="fp32",
    latency=LatencySettings(),
    machine=Machine(cpu="a cpu", device="cpu", n_threads=1, torch="2", transformers="5", dynabert="0"),
    date="2026-01-01T00:00:00+00:00",
    fingerprint="0" * 16,
)
SMALL = st.integers(0, 5)  # few values, so that equal ones are common


def row(place: int, metric: int, costs: tuple[int, int, int]) -> Measurement:
    quality = Quality({"accuracy": metric / 5}, 0.0, 1.0, None, 1.0)
    return Measurement(f"w1-d0.{place + 1}", 1, 1, quality, Cost(costs[0], costs[1], float(costs[2])), "transformers")


@st.composite
def sweeps(draw: st.DrawFn) -> Sweep:
    points = draw(st.lists(st.tuples(SMALL, st.tuples(SMALL, SMALL, SMALL)), min_size=1, max_size=12))
    return Sweep(tuple(row(place, metric, costs) for place, (metric, costs) in enumerate(points)), CONTEXT)


def dominates(one: Measurement, other: Measurement, cost: CostName) -> bool:
    prices = getattr(one.cost, cost), getattr(other.cost, cost)
    no_worse = one.metric >= other.metric and prices[0] <= prices[1]
    return no_worse and (one.metric > other.metric or prices[0] < prices[1])


@pytest.mark.parametrize("cost", ["n_params", "flops", "latency_ms"])
@settings(deadline=None)
@given(sweep=sweeps())
def test_front_is_the_rows_that_nothing_dominates(cost: CostName, sweep: Sweep) -> None:
    front = sweep.front(cost)
    expected = [row for row in sweep.rows if not any(dominates(other, row, cost) for other in sweep.rows)]
    assert list(front.rows) == expected
    assert front.context == sweep.context


@settings(deadline=None)
@given(sweep=sweeps(), limit=SMALL)
def test_pick_is_on_the_front_of_the_cost_it_limits(sweep: Sweep, limit: int) -> None:
    if any(row.cost.n_params <= limit for row in sweep.rows):
        picked = sweep.pick(max_params=limit)
        assert picked in sweep.front("n_params").rows
        assert picked.metric == max(row.metric for row in sweep.rows if row.cost.n_params <= limit)
