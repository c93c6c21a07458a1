"""The card of a run: written with the sweep, refreshed with it, and left alone once somebody has edited it."""

import json
import shutil
from pathlib import Path

import pytest
from model_folders import refusal
from small_job import write_run

from dynabert.card_parts import header_of, is_unedited
from dynabert.errors import SettingError
from dynabert.folders import verify_manifest
from dynabert.results import card_of_run, extract_run, folder_to_push, load_sweep, measure_run
from dynabert.run_card import origin_of
from dynabert.subnet import Subnet


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("job"))


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


def card_in(folder: Path) -> str:
    return (folder / "README.md").read_text()


def test_training_ends_with_a_card_that_names_no_path(finished: Path) -> None:
    card = card_in(finished / "elastic")
    results = header_of(card).eval_results
    measured = {row.subnet: row.metric for row in load_sweep(finished).rows}
    assert {result.metric_args["subnet"]: result.metric_value for result in results} == measured
    assert "seed 42" in card and "40 validation" in card and "Base model: not on the hub" in card
    assert str(finished.parent) not in card and "/" + finished.parts[1] + "/" not in card
    verify_manifest(finished / "elastic")  # a card does not damage the folder
    origin = origin_of(finished)
    assert (origin.task, origin.dataset, origin.language, origin.base_model) == ("files", None, None, None)


def test_a_card_of_ours_is_replaced_and_one_that_was_edited_is_kept(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = run / "elastic" / "README.md"
    path.unlink()
    assert card_of_run(run) == path
    first = path.read_text()
    sweep = json.loads((run / "sweep.json").read_text())
    sweep["context"]["reference"] = 0.125
    (run / "sweep.json").write_text(json.dumps(sweep))
    card_of_run(run)
    assert "0.1250" in path.read_text() and is_unedited(path.read_text())
    path.write_text(first + "Read this first.\n")
    assert "was edited" in refusal(card_of_run, run, error=SettingError)
    measure_run(run, latency=None)
    assert path.read_text() == first + "Read this first.\n" and "was edited" in caplog.text
    card_of_run(run, force=True)
    assert is_unedited(path.read_text())


def test_a_small_model_gets_the_card_of_its_size(run: Path, tmp_path: Path) -> None:
    extract_run(run, Subnet(0.5, 0.5), tmp_path / "small")
    card = card_in(tmp_path / "small")
    [result] = header_of(card).eval_results
    row = next(row for row in load_sweep(run).rows if row.subnet == "w0.5-d0.5")
    assert result.metric_value == pytest.approx(row.metric, abs=1e-6)
    assert "seed 42" in card and str(tmp_path) not in card
    verify_manifest(tmp_path / "small")


def test_a_run_without_a_sweep_or_card_is_pushed_with_one(run: Path) -> None:
    (run / "sweep.json").unlink()
    (run / "elastic" / "README.md").unlink()
    assert folder_to_push(run) == run / "elastic"
    assert "Nothing was measured" in card_in(run / "elastic")
    assert folder_to_push(run / "teacher") == run / "teacher"


def test_a_run_of_an_earlier_version_has_a_card_too(run: Path) -> None:
    saved = json.loads((run / "run.json").read_text())
    for name in ("base_model", "rows", "machine"):
        del saved[name]
    (run / "run.json").write_text(json.dumps(saved))
    card_of_run(run)
    assert "rows: fingerprint" in card_in(run / "elastic")
    (run / "run.json").write_text("{}")
    assert "not of this version" in refusal(card_of_run, run)
