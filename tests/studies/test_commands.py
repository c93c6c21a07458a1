"""The commands of the studies: what they print, and that their options reach the study."""

import json
from pathlib import Path

import pytest
from calling import call
from small_job import write_run

from dynabert.studies.study import Study

TINY = ("--seeds", 1, "--budget", 0.3)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("job"))


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs a command that has to succeed; what it printed."""

    def of(*arguments: object) -> str:
        assert call(monkeypatch, *arguments) == 0
        return capsys.readouterr().out

    return of


def test_a_comparison_is_a_table_or_one_object(run: Path, said, tmp_path: Path) -> None:
    command = ("compare", run, "--methods", "deebert,first-layers", "--lrs", "1e-3", "--limit", 100, *TINY)
    found = json.loads(said(*command, "--json"))
    assert set(found["sweeps"]) == {"dynabert", "deebert", "first-layers"} >= {row["method"] for row in found["rows"]}
    assert found["seeds"] == [42] and {row["lr"] for row in found["rows"]} == {1e-3}
    assert found["training_flops"] == Study(run, budget=0.3, limit=100).budget_flops
    assert found["sweeps"] == json.loads((run / "studies" / "compare.json").read_text())["sweeps"]
    table = said(*command, "--plot", tmp_path / "methods.svg")
    assert "first-layers" in table and "dynabert" in table and "not tuned" in table and "…" not in table
    drawn = (tmp_path / "methods.svg").read_text()
    assert drawn.startswith("<svg") and all(f">{name}<" in drawn for name in ("dynabert", "deebert", "first-layers"))


def test_an_ablation_is_a_table_or_one_object(run: Path, said) -> None:
    command = ("ablate", run, "--factors", "finetune", "--lrs", "1e-3", *TINY)
    found = json.loads(said(*command, "--json"))
    assert {row["factor"] for row in found["rows"]} == {"finetune"}
    assert {row["lr"] for row in found["rows"]} == {1e-3} and found["seeds"] == [42]
    assert found["training_flops"] == Study(run, budget=0.3).budget_flops
    table = said(*command)
    assert "finetune" in table and "…" not in table


def test_exits_are_a_table_or_one_object(run: Path, said) -> None:
    command = ("exits", run, "--subnets", "w0.5-d1", "--agreements", "0.5,0.3", "--lr", 1e-3, "--budget", 0.3)
    found = json.loads(said(*command, "--device", "cpu", "--json"))
    assert {point["subnet"] for point in found["points"]} == {"w0.5-d1"}
    asked = {point["asked"] for point in found["points"]} | {share for _, share in found["unreached"]}
    assert asked == {None, 0.5, 0.3}
    saved = json.loads((run / "studies" / "exits.json").read_text())
    assert saved.pop("made")["budget"] == 0.3 and found == saved
    table = said(*command)
    assert "no exit" in table and "w0.5-d1" in table and "…" not in table


def test_a_report_says_where_it_is(run: Path, said, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    made = json.loads(said("report", run, "--out", page, "--device", "cpu", "--json"))
    assert made["page"] == str(page) and made["n_bytes"] == page.stat().st_size
    assert str(page) in said("report", run, "--out", page, "--device", "cpu")


def test_attention_is_a_table_or_one_object(run: Path, said, tmp_path: Path) -> None:
    found = json.loads(said("attention", run, "--rows", 5, "--device", "cpu", "--out", tmp_path / "a.json", "--json"))
    assert found["n_texts"] == 5
    assert found == json.loads((tmp_path / "a.json").read_text())
    assert "w0.5-d0.5" in said("attention", run, "--text", "film is warm", "--threshold", 0.9)
