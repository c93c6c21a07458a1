"""A finished run with studies beside it, as the report finds it."""

from pathlib import Path

import pytest
from small_job import small_plan, write_job
from small_studies import beside, write_ablation, write_comparison, write_deployed

from dynabert.results import load_sweep
from dynabert.run import train
from dynabert.search import CostLimit, Effort, search_run
from dynabert.studies.attention import attention_of_run
from dynabert.studies.size_exit import cascades_of_run, exits_of_run
from dynabert.sweep import LatencySettings


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained and measured run folder; tests add to it nothing but what a report keeps there."""
    encoder, source = write_job(tmp_path_factory.mktemp("job"))
    run = encoder.parent / "run"
    train(encoder, source, run, plan=small_plan(), latency=LatencySettings(seq=(16,), repeats=3))
    write_comparison(run, beside(load_sweep(run)))
    write_ablation(run)
    write_deployed(run, load_sweep(run))
    cascades_of_run(run, agreements=(0.8, 0.5))
    exits_of_run(run, agreements=(0.8, 0.5), budget=0.1)
    attention_of_run(run, n_rows=8)
    for share in (0.8, 0.5):
        search_run(run, CostLimit(share=share), effort=Effort(trials=8))
    return run
