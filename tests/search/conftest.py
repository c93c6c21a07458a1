"""A run that is trained once for all searches."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_job import small_plan, write_job

from dynabert.run import train
from dynabert.search.scoring import Score, Scorer
from dynabert.subnet import Subnet


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    encoder, source = write_job(tmp_path_factory.mktemp("job"), n_layers=4)
    train(encoder, source, encoder.parent / "run", plan=small_plan(), latency=None)
    return encoder.parent / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def n_predicted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The Subnets that were really predicted, one entry each."""
    names: list[str] = []
    original = Scorer._scored

    def counted(self: Scorer, subnet: Subnet, best: Score | None) -> Score:
        names.append(subnet.name)
        return original(self, subnet, best)

    monkeypatch.setattr(Scorer, "_scored", counted)
    yield names
