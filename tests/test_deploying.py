"""The commands that deploy: measure on an engine, pick from that, export, predict; and what they refuse."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from calling import call
from small_job import small_plan, write_run

from dynabert.errors import SettingError
from dynabert.results import card_of_run, check_machine, load_sweep, sweep_file, without_foreign_times
from dynabert.run import train
from dynabert.saved import Saved
from dynabert.sweep import LatencySettings, Sweep


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def measured(run: Path) -> Path:
    """The run with a Sweep of its int8 form."""
    with pytest.MonkeyPatch.context() as patch:
        arguments = ("measure", run, "--engine", "onnxruntime", "--dtype", "int8", "--batch", "1,2", "--seq", "8,16")
        assert call(patch, *map(str, arguments), "--repeats", "2", "--threads", "1") == 0
    return run


def output(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


def test_pick_answers_from_the_deployed_form(
    measured: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = load_sweep(measured, engine="onnxruntime", dtype="int8")
    at = sweep.at(batch=2, seq=16)
    limit = sorted(row.cost.latency_ms for row in at.rows)[1]
    form = ("--engine", "onnxruntime", "--dtype", "int8")
    asked = ("--batch", "2", "--seq", "16", "--max-latency-ms", f"{limit}", "--max-file-mb", "5")
    assert call(monkeypatch, "pick", str(measured), *form, *asked, "--json") == 0
    assert json.loads(output(capsys))["subnet"] == at.pick(max_latency_ms=limit).subnet
    assert call(monkeypatch, "pick", str(measured), *form, "--batch", "2", "--seq", "16", "--must-load", "onnx") == 0
    assert "dynabert export" in (said := output(capsys)) and "--engine onnxruntime --dtype int8" in said
    assert "--batch 2 --seq 16 --threads 1 --out" in said, "it is timed as it was here"
    assert call(monkeypatch, "pick", str(measured), *form, "--must-load", "dynabert") == 0
    assert "dynabert extract" in (said := output(capsys)) and "are those of onnxruntime int8" in said
    assert call(monkeypatch, "pick", str(measured), *form, "--must-load", "openvino") == 0
    assert "--engine openvino --dtype int8" in (said := output(capsys)) and "are those of onnxruntime int8" in said


def test_a_run_is_told_where_its_rows_are(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train_file = Saved.of(run).source.train
    assert train_file is not None
    assert call(monkeypatch, "moved", str(run), str(train_file.parent)) == 0
    assert f"the rows of {run} are those of" in output(capsys)
    assert call(monkeypatch, "moved", str(run), str(train_file.parent), "--json") == 0
    assert json.loads(output(capsys))["source"]["train"] == str(train_file)
    assert "dynabert moved" not in capsys.readouterr().err
    assert call(monkeypatch, "moved", str(run), str(tmp_path)) == 3
    assert "no such file" in capsys.readouterr().err and Saved.of(run).source.train == train_file


def test_the_time_of_other_sizes_is_predicted(
    measured: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    form = ("--engine", "onnxruntime", "--dtype", "int8")
    assert call(monkeypatch, "measure", str(measured), *form, "--predict", "w1-d1,h1-n0.5-d0.5", "--json") == 0
    said = json.loads(output(capsys))
    assert 0 < said["ms"]["h1-n0.5-d0.5"] <= said["ms"]["w1-d1"] and (said["batch"], said["seq"]) == (1, 8)
    assert call(monkeypatch, "measure", str(measured), *form, "--predict", "h1-n0.5-d0.5") == 0
    assert (text := output(capsys)).startswith("h1-n0.5-d0.5: about ") and "left out in turn" in text
    other = ("--predict", "w1-d1", "--batch", "2", "--seq", "16", "--json")
    assert call(monkeypatch, "measure", str(measured), *form, *other) == 0
    said = json.loads(output(capsys))
    assert (said["batch"], said["seq"]) == (2, 16)
    assert call(monkeypatch, "measure", str(measured), *form, "--predict", "w1-d1", "--batch", "1,2") == 2
    assert "--predict takes one" in capsys.readouterr().err


def test_a_size_of_an_elastic_folder_predicts_as_when_it_is_cut_out(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = str(tmp_path / "small")
    assert call(monkeypatch, "extract", str(run), "--subnet", "w0.5-d0.5", "--out", small) == 0
    output(capsys)
    said = []
    for model in ((small,), (str(run / "elastic"), "--subnet", "w0.5-d0.5"), (str(run / "elastic"),)):
        assert call(monkeypatch, "predict", *model[:1], "a film", *model[1:], "--json") == 0
        said.append(output(capsys))
    assert said[0] == said[1] != said[2]
    assert call(monkeypatch, "predict", small, "--subnet", "w0.5-d0.5", "a film") != 0
    assert "is one model; leave --subnet out" in capsys.readouterr().err


def test_the_card_shows_the_deployed_form(measured: Path, caplog: pytest.LogCaptureFixture) -> None:
    card, sweep = measured / "elastic" / "README.md", load_sweep(measured, engine="onnxruntime", dtype="int8")
    body = card.read_text().split("## As deployed")[1]
    assert "In int8, run by onnxruntime" in body and f"{sweep.rows[-1].cost.timings[3].median_ms:.2f}" in body
    path = measured / sweep_file("onnxruntime", "int8")
    whole = path.read_bytes()
    path.write_text("{")
    card_of_run(measured)
    assert "As deployed" not in card.read_text() and "not in the card" in caplog.text
    path.write_bytes(whole)
    card_of_run(measured)
    assert "As deployed" in card.read_text()


def test_a_run_that_is_measured_again_keeps_the_deployed_forms_in_its_card(measured: Path) -> None:
    encoder, source = measured.parent / "encoder", Saved.of(measured).source
    train(encoder, source, measured, plan=small_plan(), latency=LatencySettings(seq=(16,), repeats=2))
    assert "As deployed" in (measured / "elastic" / "README.md").read_text()


def test_an_engine_is_measured_beside_a_damaged_sweep(
    measured: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = measured / "sweep.json"
    whole = path.read_bytes()
    path.write_text("{")
    form = ("--engine", "onnxruntime", "--dtype", "fp32", "--seq", "8", "--repeats", "2", "--subnets", "w1-d1")
    assert call(monkeypatch, "measure", str(measured), *form) == 0
    path.write_bytes(whole)
    assert "the card stays as it is" in caplog.text and load_sweep(measured, engine="onnxruntime").rows


def elsewhere(sweep: Sweep, **machine: object) -> Sweep:
    return replace(sweep, context=replace(sweep.context, machine=replace(sweep.context.machine, **machine)))


@pytest.mark.parametrize(
    ("machine", "message"),
    [
        ({"cpu": "an abacus"}, r"measured elsewhere \(cpu an abacus there"),
        ({"engine": "onnxruntime 1.0"}, r"measured elsewhere \(engine onnxruntime 1.0 there"),
        ({"n_cores": 999}, r"n_cores 999 there"),
        ({"instructions": "NONE"}, r"instructions NONE there"),
    ],
)
def test_times_of_another_machine_or_version_are_refused_unless_allowed(
    measured: Path,
    machine: dict[str, object],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = measured / "sweep-onnxruntime-int8.json"
    own = Sweep.from_json(path)
    check_machine(own)
    assert without_foreign_times(own) == own
    foreign = elsewhere(own, **machine)
    with pytest.raises(SettingError, match=message):
        check_machine(foreign)
    form = ("pick", str(measured), "--engine", "onnxruntime", "--dtype", "int8")
    foreign.to_json(path)
    try:
        assert call(monkeypatch, *form, "--max-latency-ms", "1000") == 2
        assert "measure again, or add --any-machine" in capsys.readouterr().err
        assert call(monkeypatch, *form, "--max-latency-ms", "1000", "--any-machine") == 0
        assert " ms" in output(capsys)
        assert call(monkeypatch, *form, "--min-metric", "0.1") == 0
        assert " ms" not in output(capsys)  # what was measured elsewhere neither decides nor is shown
    finally:
        own.to_json(path)


def test_an_export_predicts(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    sizes = ("--subnets", "w1-d1,w0.5-d0.5", "--engine", "onnxruntime", "--seq", "8")
    assert call(monkeypatch, "export", str(run), *sizes, "--out", str(tmp_path / "deploy")) == 0
    assert "agrees with PyTorch 100.0%" in output(capsys)
    assert call(monkeypatch, "predict", str(tmp_path / "deploy"), "--subnet", "w1-d1", "film is warm", "--json") == 0
    (exported,) = json.loads(output(capsys))["predictions"]
    assert call(monkeypatch, "predict", str(run / "elastic"), "film is warm", "--json") == 0
    (own,) = json.loads(output(capsys))["predictions"]
    assert exported["label"] == own["label"] and exported["score"] == pytest.approx(own["score"], abs=1e-4)
    assert call(monkeypatch, "predict", str(tmp_path / "deploy"), "film is warm") == 2
    assert "several sizes here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("measure", "RUN", "--engine", "openvino", "--no-latency"), "openvino fp32 is measured with its latency"),
        (("measure", "RUN", "--engine", "openvino", "--device", "cuda"), "leave --no-latency and --device out"),
        (("measure", "RUN", "--batch", "1,two"), "--batch '1,two' is not a list of numbers"),
        (("measure", "RUN", "--no-latency", "--batch", "8", "--repeats", "2"), "--batch and --repeats: of times"),
        (("pick", "RUN", "--engine", "tensorrt"), "unknown engine 'tensorrt'"),
        (("pick", "RUN", "--dtype", "int8"), "unknown dtype of torch 'int8'"),
        (("measure", "RUN", "--seq", "1.5"), "--seq '1.5' is not a list of whole numbers"),
        (("pick", "RUN", "--engine", "openvino"), "has no sweep-openvino-fp32.json yet; run `dynabert measure"),
        (("export", "RUN", "--subnet", "w1-d1", "--out", "RUN/x"), "lies inside the run folder"),
        (("export", "RUN", "--subnet", "w1-d1", "--out", "FILE"), "is a file; give the name of a folder"),
        (
            ("export", "RUN", "--subnet", "w1-d1", "--out", "FULL"),
            "is not empty and has no export.json; give another --out",
        ),
        (
            ("export", "RUN", "--subnet", "w1-d1", "--subnets", "w1-d1", "--out", "x"),
            "--subnets, or one size, not both",
        ),
        (("export", "RUN", "--subnets", "w1-d1,w0.5-d1", "--out", "x"), "share their weights as onnxruntime fp32"),
        (("export", "RUN", "--subnet", "w1-d1", "--seq", "9999", "--out", "x"), "too long for this model"),
        (("measure", "RUN", "--predict", "w0.3-d1", "--engine", "openvino"), "has no sweep-openvino-fp32.json yet"),
        (("predict", "RUN/elastic", "CSV"), "is a table; give its texts alone"),
    ],
)
def test_mistakes_are_one_line(
    run: Path,
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "rows.csv").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thing").touch()
    places = {
        "RUN": str(run),
        "FILE": str(tmp_path / "file"),
        "FULL": str(tmp_path / "full"),
        "CSV": str(tmp_path / "rows.csv"),
    }
    filled = []
    for argument in arguments:
        for name, place in places.items():
            argument = argument.replace(name, place)
        filled.append(argument)
    assert call(monkeypatch, *filled) in (2, 3)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error and error.startswith("dynabert: ")
