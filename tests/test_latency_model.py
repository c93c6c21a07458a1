"""Latency of sizes that were not measured: exact where time is what the model says, and honest about its error."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import tiny_model
from small_studies import made_sweep

from dynabert.elastic import ElasticModel
from dynabert.errors import SettingError
from dynabert.latency_model import LatencyModel
from dynabert.measurement import LatencySettings
from dynabert.subnet import LayerSlice, Subnet, encoder_flops
from dynabert.sweep import Sweep

PER_LAYER = (LayerSlice(0, 1, 48), LayerSlice(2, 3, 16), LayerSlice(3, 2, 64))


@pytest.fixture(scope="module")
def elastic() -> ElasticModel:
    return ElasticModel(tiny_model("bert"))


def true_ms(elastic: ElasticModel, slices: tuple[LayerSlice, ...]) -> float:
    """2 ms a call, 0.5 a layer, 3,000 a GFLOP."""
    return 2 + 0.5 * len(slices) + 3000 * encoder_flops(elastic.shape, slices, 16) / 1e9


def measured(elastic: ElasticModel, noise: float = 0.0) -> Sweep:
    random, names = np.random.default_rng(0), [subnet.name for subnet in elastic.grid]
    sweep = made_sweep(names, latency=True)
    rows = []
    for row in sweep.rows:
        ms = true_ms(elastic, elastic.slices(Subnet.parse(row.subnet))) * (1 + noise * random.standard_normal())
        rows.append(replace(row, cost=replace(row.cost, latency_ms=ms)))
    return Sweep(tuple(rows), replace(sweep.context, latency=LatencySettings(seq=(16,))))


def test_sizes_that_were_not_measured_are_predicted(elastic: ElasticModel) -> None:
    model = LatencyModel.fit(measured(elastic), elastic.described)
    assert model.worst < 1e-6
    assert model.ms(PER_LAYER) == pytest.approx(true_ms(elastic, PER_LAYER), rel=1e-6)


def test_noise_shows_in_the_error(elastic: ElasticModel) -> None:
    model = LatencyModel.fit(measured(elastic, noise=0.1), elastic.described)
    assert 0.02 < model.error <= model.worst < 0.6
    assert min(model.prices) >= 0
    assert f"off by {model.error:.1%} in the median, {model.worst:.1%} at worst" in model.describe()


def test_a_rough_prediction_says_what_would_help(elastic: ElasticModel) -> None:
    model = LatencyModel.fit(measured(elastic), elastic.described)
    assert model.describe().endswith("at worst")
    assert replace(model, error=0.28).describe().endswith("; measure on a quieter machine, or with more --repeats")


def test_too_little_to_go_by_is_refused(elastic: ElasticModel) -> None:
    sweep = measured(elastic)
    with pytest.raises(SettingError, match="3 measured sizes are too few to predict others; measure 4 or more"):
        LatencyModel.fit(Sweep(sweep.rows[:3], sweep.context), elastic.described)
    with pytest.raises(SettingError, match="no latency to predict others from"):
        LatencyModel.fit(made_sweep(latency=False), elastic.described)
