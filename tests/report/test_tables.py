"""The numbers behind the figures, against plain loops."""

from dataclasses import replace

import numpy as np
import pytest
from small_studies import made_sweep

from dynabert.report import tables


def by_pair(columns, measure):
    return {(row["smaller"], row["larger"]): row for row in tables.rows_of(columns) if row["measure"] == measure}


def test_agreement_and_flips_are_counted_row_by_row():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 50)
    logits = {name: rng.normal(size=(50, 3)).astype(np.float32) for name in ("large", "middle", "small")}
    found = tables.pairs(labels, logits)
    agreement, flips = by_pair(found, "agreement"), by_pair(found, "flips")
    for row in logits:
        for column in logits:
            same = lost = 0
            for place, label in enumerate(labels):
                of_row, of_column = int(np.argmax(logits[row][place])), int(np.argmax(logits[column][place]))
                same += of_row == of_column
                lost += of_row != label and of_column == label
            assert agreement[row, column]["value"] == pytest.approx(2 * same)
            assert flips[row, column]["value"] == pytest.approx(2 * lost)
            assert flips[row, column]["text"] == f"{2 * lost:.1f}"
    assert flips["small", "large"]["value"] != flips["large", "small"]["value"], "the direction counts"


def test_the_matrix_of_a_measure_has_the_sizes_in_their_order():
    labels = np.array([0, 1, 1, 0])
    right, wrong = np.eye(2, dtype=np.float32)[labels], np.eye(2, dtype=np.float32)[1 - labels]
    found = tables.pairs(labels, {"w1-d1": right, "w0.5-d1": wrong})
    assert dict(tables.matrix(found, "flips")) == {"w1-d1": ["0.0", "0.0"], "w0.5-d1": ["100.0", "0.0"]}
    assert dict(tables.matrix(found, "agreement")) == {"w1-d1": ["100.0", "0.0"], "w0.5-d1": ["0.0", "100.0"]}


def test_scores_of_a_regression_are_correlated_and_nothing_flips():
    labels = np.array([0.0, 1.0, 2.0, 3.0], dtype=np.float32)
    up = labels[:, None]
    found = tables.pairs(labels, {"w1-d1": up, "w0.5-d1": 5 - 2 * up})
    assert set(found["measure"]) == {"agreement"}
    assert by_pair(found, "agreement")["w1-d1", "w0.5-d1"]["value"] == pytest.approx(-100)


def test_thinning_keeps_the_ends_and_the_mean_of_each_stretch():
    steps = list(range(5, 1005))
    values = np.stack([np.linspace(3, 1, 1000), np.full(1000, np.nan)], axis=1)
    values[500:, 1] = 7.0
    kept_steps, kept = tables.thin(steps, values, 100)
    assert len(kept_steps) == len(kept) == 100
    assert (kept_steps[0], kept_steps[-1]) == (5, 1004) and kept_steps == sorted(set(kept_steps))
    assert kept[0, 0] == 3.0, "the first value is nobody's mean"
    start = 0
    for step, mean in zip(kept_steps, kept[:, 0], strict=True):
        stop = steps.index(step) + 1
        assert mean == pytest.approx(sum(values[start:stop, 0]) / (stop - start))
        start = stop
    assert np.isnan(kept[0, 1]) and set(kept[np.isfinite(kept[:, 1]), 1]) == {7.0}, "what is absent counts for nothing"


def test_a_short_curve_is_kept_whole():
    values = np.array([[1.0], [2.0], [3.0]])
    steps, kept = tables.thin([1, 2, 3], values, 3)
    assert steps == [1, 2, 3] and np.array_equal(kept, values)


def test_curves_have_a_row_for_each_stage_size_and_step_and_a_column_for_each_term():
    metrics = [
        {"stage": "width", "step": step, "losses": {"w1-d1": {"logits": 1 / step, "hidden": None}}} for step in (2, 1)
    ]
    metrics += [{"stage": "depth", "step": 1, "losses": {"w0.5-d0.5": {"labels": 4.0}}}, {"stage": "depth", "step": 9}]
    columns, terms = tables.curves(metrics)
    assert terms == {"width": ["logits", "hidden"], "depth": ["labels"]}
    assert columns["stage"] == ["width", "width", "depth"]
    assert columns["step"] == [1, 2, 1]
    assert columns["logits"] == [1.0, 0.5, None]
    assert columns["hidden"] == [None, None, None]
    assert columns["labels"] == [None, None, 4.0]
    assert (columns["width"][-1], columns["depth"][-1]) == ("0.5", "0.5")


def test_curves_of_many_sizes_stay_few_points_together():
    losses = {f"w{width}-d1": {"logits": 1.0} for width in np.linspace(0.01, 1, 60).round(3).tolist()}
    columns, _ = tables.curves([{"stage": "width", "step": step, "losses": losses} for step in range(1, 501)])
    assert len(columns["step"]) <= tables.MAX_ALL_POINTS
    assert {columns["step"][0], columns["step"][-1]} == {1, 500}


def test_select_scores_are_counted_on_over_the_stages():
    metrics = [
        {"stage": "width", "step": 4, "n_steps": 10, "select_score": 0.5, "best": True},
        {"stage": "width", "step": 10, "n_steps": 10, "select_score": 0.25, "best": False},
        {"stage": "depth", "step": 5, "n_steps": 20, "losses": {}},
        {"stage": "depth", "step": 5, "n_steps": 20, "select_score": 0.75, "best": True},
    ]
    found = tables.select_scores(metrics)
    assert found["step_of_run"] == [4, 10, 15]
    assert found["score"] == [0.5, 0.25, 0.75]
    assert found["best"] == [True, False, True]


def test_every_method_has_its_own_front_by_what_was_measured_of_it():
    own, other = made_sweep(), made_sweep(("a", "b"), latency=False)
    worse = replace(own.rows[-1], subnet="w0.25-d1", cost=own.rows[0].cost)
    found = tables.fronts({"DynaBERT": replace(own, rows=(*own.rows, worse)), "other": other})
    rows = {(row["method"], row["size"]): row for row in tables.rows_of(found)}
    assert rows["DynaBERT", "w1-d1"]["n_params"] == 4.0, "in millions"
    assert rows["DynaBERT", "w1-d1"]["flops"] == 1.0, "in thousands of millions"
    assert not rows["DynaBERT", "w0.25-d1"]["front_flops"] and rows["DynaBERT", "w0.5-d0.5"]["front_flops"]
    assert rows["other", "a"]["latency_ms"] is None and not rows["other", "a"]["front_latency_ms"]
    assert "time_alone" not in found


def test_methods_have_fronts_by_the_time_of_a_comparison():
    own, other = made_sweep(), made_sweep(("a", "b"), latency=False)
    times = {"other": {"a": (0.5, 0.4), "b": (0.625, 0.3)}}
    rows = {row["size"]: row for row in tables.rows_of(tables.fronts({"DynaBERT": own, "other": other}, times))}
    assert (rows["a"]["time_alone"], rows["b"]["time_together"]) == (50.0, 30.0), "in %"
    assert rows["a"]["metric"] > rows["b"]["metric"]
    assert rows["a"]["front_time_alone"] and not rows["b"]["front_time_alone"], "slower and worse"
    assert rows["a"]["front_time_together"] and rows["b"]["front_time_together"]
    assert rows["w1-d1"]["time_alone"] is None and not rows["w1-d1"]["front_time_alone"]


def test_the_grid_has_the_place_of_each_size_between_the_worst_and_the_best():
    found = tables.grid(made_sweep((*("w1-d1", "w1-d0.5", "w0.5-d1"), "an-exit")))
    shares = {row["size"]: row["share"] for row in tables.rows_of(found) if row["measure"] == "accuracy"}
    assert shares == {"w1-d1": 1.0, "w1-d0.5": 0.5, "w0.5-d1": 0.0}, "what has no width and depth is not in it"
    assert {row["text"] for row in tables.rows_of(found) if row["measure"] == "kept"} == {"100.0", "94.4", "88.9"}


def test_neurons_fall_and_their_totals_reach_all():
    scores = np.array([[1.0, 4.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    rows = [row for row in tables.rows_of(tables.neurons(scores)) if row["layer"] == 0]
    assert [row["part"] for row in rows] == [25, 50, 75, 100]
    assert [row["share"] for row in rows] == [100, 75, 50, 25]
    assert [row["total"] for row in rows] == [40, 70, 90, 100]
    assert tables.neurons_for(scores[:1], 0.7) == [0.5]
    many = tables.rows_of(tables.neurons(np.linspace(1, 2, 3000)[None]))
    assert len(many) == tables.NEURON_POINTS and (many[0]["share"], many[-1]["part"]) == (100, 100)


def test_heads_are_compared_within_their_layer():
    found = tables.heads(np.array([[2.0, 1.0], [0.1, 0.4]]))
    assert found["share"] == [1.0, 0.5, 0.25, 1.0]
