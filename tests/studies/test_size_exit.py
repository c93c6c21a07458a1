"""Early exit on the sizes of a run: calibrated on the select rows, measured on the validation rows."""

import json
from pathlib import Path

import numpy as np
import pytest
from small_job import small_plan, write_job

from dynabert.errors import SettingError
from dynabert.measure import predict
from dynabert.results import load_result
from dynabert.run import train
from dynabert.studies.size_exit import exits_of_run
from dynabert.studies.trials import Study
from dynabert.subnet import Subnet


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    encoder, source = write_job(tmp_path_factory.mktemp("job"), n_layers=4)
    train(encoder, source, encoder.parent / "run", plan=small_plan(), latency=None)
    return encoder.parent / "run"


def test_sizes_get_exits_that_agree_with_the_full_network(run: Path) -> None:
    result = exits_of_run(run, agreements=(1.0, 0.7), budget=0.5, lr=1e-3)
    plain = {point.subnet: point for point in result.points if point.asked is None}
    assert set(plain) == {"w1-d1", "w0.5-d1"}
    assert (plain["w1-d1"].agreement, plain["w1-d1"].n_layers) == (1, 4)
    elastic, study = load_result(run), Study(run)
    own = predict(elastic.at(Subnet(0.5, 1.0)), study.rows(42).validation)
    assert plain["w0.5-d1"].metric == pytest.approx(100 * np.mean(own.argmax(1) == study.labels))
    for point in result.points:
        if point.asked is not None:
            assert point.n_layers <= plain[point.subnet].n_layers
            assert point.flops <= plain[point.subnet].flops
    reached = {(point.subnet, point.asked) for point in result.points if point.asked is not None}
    wanted = {(name, share) for name in plain for share in (1.0, 0.7)}
    assert reached | set(result.unreached) == wanted and not reached & set(result.unreached)
    assert json.loads((run / "studies" / "exits.json").read_text())["points"][0]["subnet"] == "w1-d1"
    assert "no exit" in result.table()


def test_a_lower_agreement_is_never_slower(run: Path) -> None:
    result = exits_of_run(run, subnets=[Subnet()], agreements=(0.99, 0.9, 0.6), budget=0.5, lr=1e-3)
    thresholds = [point.threshold for point in result.points if point.asked is not None]
    assert thresholds == sorted(thresholds)


def test_shares_out_of_range_are_refused(run: Path) -> None:
    with pytest.raises(SettingError, match="above 0 and at most 1"):
        exits_of_run(run, agreements=(1.5,))
