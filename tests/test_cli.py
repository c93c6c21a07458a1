import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from calling import call
from small_job import small_plan, write_job

from dynabert.plan import Source
from dynabert.run import train


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Source]:
    return write_job(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def finished(job: tuple[Path, Source]) -> Path:
    out = job[0].parent / "run"
    train(*job, out, plan=small_plan(), latency=None)
    return out


def test_the_whole_job_from_the_command_line(
    job: tuple[Path, Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder, source = job
    run, small = tmp_path / "run", tmp_path / "small"
    data = ("--train", source.train, "--validation", source.validation, "--text", "text", "--label", "label")
    sizes = (
        "--widths",
        "1,0.5",
        "--depths",
        "1,0.5",
        "--epochs",
        1,
        "--teacher-epochs",
        1,
        "--lr",
        1e-3,
        "--max-length",
        32,
    )
    assert call(monkeypatch, "train", "--model", encoder, "--out", run, *data, *sizes, "--no-latency") == 0
    shown = capsys.readouterr()
    assert "w0.5-d0.5" in shown.out and str(run) in shown.out and "sandwich" in shown.err
    assert call(monkeypatch, "measure", run, "--repeats", 2, "--seq", 8, "--json") == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert all(row["latency_ms"] > 0 for row in rows)
    assert call(monkeypatch, "pick", run, "--max-params", rows[-1]["n_params"], "--json") == 0
    assert json.loads(capsys.readouterr().out)["subnet"] == "w0.5-d0.5"
    assert call(monkeypatch, "extract", run, "--width", 0.5, "--depth", 0.5, "--out", small, "--json", "--check") == 0
    cut = json.loads(capsys.readouterr().out)
    assert cut["n_params"] == rows[-1]["n_params"] and cut["parity"]["metric"] == rows[-1]["metrics"]["accuracy"]
    assert cut["parity"]["max_difference"] < 1e-4 and cut["parity"]["n_rows"] == 40 and cut["timing"]["median_ms"] > 0
    assert cut["parity"]["agreement"] > 0.5
    assert call(monkeypatch, "extract", run / "elastic", "--width", 0.5, "--depth", 0.5, "--out", small, "--check") == 2
    assert "is no run, so there are no rows to check on" in capsys.readouterr().err
    assert call(monkeypatch, "predict", small, "film is warm", "--json") == 0
    (prediction,) = json.loads(capsys.readouterr().out)["predictions"]
    assert prediction["label"] in ("good", "bad") and 0.5 <= prediction["score"] <= 1
    assert call(monkeypatch, "predict", small, "film is warm " * 100, "--json") == 0  # longer than a file name may be
    assert len(json.loads(capsys.readouterr().out)["predictions"]) == 1
    (tmp_path / "texts.txt").write_text("film is warm\nplot is flat\n")
    assert call(monkeypatch, "predict", small, tmp_path / "texts.txt") == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_a_dry_run_is_one_object_and_writes_nothing(
    job: tuple[Path, Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = ("--train", job[1].train, "--validation", job[1].validation, "--text", "text", "--label", "label")
    sizes = ("--widths", "1,0.5", "--depths", "1", "--max-length", 32, "--recipe", "default", "--schedule", "ladder")
    common = ("train", "--model", job[0], "--out", "out", *data, *sizes, "--no-latency", "--dry-run")
    assert call(monkeypatch, *common, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert [part["name"] for part in told["parts"]][1::2] == ["teacher", "rewiring scores", "sandwich: select"]
    assert told["total_s"] > 0 and told["peak_bytes"] > 0 and told["disk_bytes"] > 0 and told["ends"]
    assert call(monkeypatch, *common) == 0
    assert "ends about" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_an_elastic_folder_is_cut_and_a_run_carded_and_pushed_dry(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = tmp_path / "small"
    assert call(monkeypatch, "extract", finished / "elastic", "--subnet", "w0.5-d0.5", "--out", small, "--json") == 0
    assert json.loads(capsys.readouterr().out)["loads_with"] == "dynabert or trust_remote_code"
    assert call(monkeypatch, "predict", small, "film is warm") == 0
    assert call(monkeypatch, "card", finished, "--json") == 0
    capsys.readouterr()
    assert call(monkeypatch, "push", finished, "me/films", "--dry-run", "--json") == 0
    assert {"README.md", "elastic.json", "tokenizer.json"} <= json.loads(capsys.readouterr().out)["files"].keys()
    assert call(monkeypatch, "push", small, "me/small-films", "--dry-run") == 0
    assert "modeling_dynabert_bert.py" in capsys.readouterr().out


BAD = {
    "unknown task": (("train", "--model", "M", "--task", "sst", "--out", "OUT"), 2, ("'sst'", "sst2")),
    "unknown recipe": (("train", "--model", "M", "--task", "sst2", "--recipe", "papr", "--out", "OUT"), 2, ("paper",)),
    "unknown schedule": (
        ("train", "--model", "M", "--task", "sst2", "--schedule", "lader", "--out", "OUT"),
        2,
        ("lader", "ladder"),
    ),
    "unknown tracker": (
        ("train", "--model", "M", "--task", "sst2", "--track", "tensorbord", "--out", "OUT"),
        2,
        ("tensorbord", "tensorboard"),
    ),
    "width out of range": (
        ("train", "--model", "M", "--task", "sst2", "--widths", "1,1.5", "--out", "OUT"),
        2,
        ("1.5",),
    ),
    "width no number": (
        ("train", "--model", "M", "--task", "sst2", "--widths", "1,half", "--out", "OUT"),
        2,
        ("half",),
    ),
    "rows and tokens of a step": (
        ("train", "--model", "M", "--task", "sst2", "--batch-size", "8", "--max-tokens", "99", "--out", "OUT"),
        2,
        ("batch_size", "max_tokens"),
    ),
    "no parts": (("train", "--model", "M", "--task", "sst2", "--accumulate", "0", "--out", "OUT"), 2, ("accumulate",)),
    "fewer rows than parts": (
        (
            *("train", "--model", "M", "DATA", "--text", "text", "--label", "label", "--out", "OUT", "--no-latency"),
            *("--max-length", "32", "--widths", "1", "--depths", "1", "--batch-size", "2", "--accumulate", "4"),
        ),
        2,
        ("batch size 2", "4 micro-batches"),
    ),
    "no data at all": (("train", "--model", "M", "--out", "OUT"), 2, ("--task",)),
    "missing data folder": (
        ("train", "--model", "M", "--task", "sst2", "--data", "GONE", "--out", "OUT"),
        3,
        ("GONE",),
    ),
    "unknown option": (("train", "--modle", "M"), 2, ("--modle",)),
    "unknown column": (
        ("train", "--model", "M", "DATA", "--text", "txt", "--label", "label", "--out", "OUT"),
        3,
        ("text",),
    ),
    "unknown label column": (
        ("train", "--model", "M", "DATA", "--text", "text", "--label", "sentiment", "--out", "OUT"),
        3,
        ("sentiment", "label"),
    ),
    "missing model": (
        ("train", "--model", "./no/such/model", "DATA", "--text", "text", "--label", "label", "--out", "OUT"),
        3,
        ("no/such/model",),
    ),
    "two widths with the same heads": (
        ("train", "--model", "M", "DATA", "--text", "text", "--label", "label", "--widths", "0.5,0.55", "--out", "OUT"),
        2,
        ("0.55", "0.5", "heads"),
    ),
    "no run folder": (("measure", "GONE"), 3, ("GONE", "run folder")),
    "bad subnet": (("measure", "RUN", "--subnet", "half"), 2, ("half", "w0.5-d0.75")),
    "nothing fits": (("pick", "RUN", "--max-params", "10"), 2, ("10",)),
    "no size": (("extract", "RUN", "--out", "OUT"), 2, ("--subnet",)),
    "two ways to say a size": (("extract", "RUN", "--subnet", "w1-d1", "--width", "1", "--out", "OUT"), 2, ("both",)),
    "no elastic model": (("extract", "M", "--subnet", "w1-d1", "--out", "OUT"), 3, ("elastic.json", "run folder")),
    "elastic model that is not there": (
        ("extract", "./GONE", "--subnet", "w1-d1", "--out", "OUT"),
        3,
        ("GONE", "neither a folder nor"),
    ),
    "card of no run": (("card", "GONE"), 3, ("GONE", "run folder")),
    "no name of a repository": (("push", "RUN", "a/b/c", "--dry-run"), 2, ("a/b/c", "me/my-model")),
    "nothing to push": (("push", "GONE", "me/my-model", "--dry-run"), 3, ("GONE", "not a model folder")),
    "missing small model": (("predict", "./GONE", "text"), 3, ("GONE",)),
    "unknown engine": (("measure", "RUN", "--engine", "tpu"), 2, ("tpu", "torch")),
    "unknown method": (("compare", "RUN", "--methods", "deebart"), 2, ("deebart", "deebert")),
    "compared with nothing": (("compare", "RUN", "--budget", "0"), 2, ("budget", "above 0")),
    "figure of a comparison": (("compare", "RUN", "--plot", "figure.pdf"), 2, (".pdf", ".svg", ".png")),
    "rate no number": (("compare", "RUN", "--lrs", "1e-4,fast"), 2, ("--lrs", "fast")),
    "unknown factor": (("ablate", "RUN", "--factors", "rewirring"), 2, ("rewirring", "rewiring")),
    "no seeds": (("ablate", "RUN", "--seeds", "0"), 2, ("seeds 0", "above 0")),
    "no study of no run": (("ablate", "GONE"), 3, ("GONE", "run folder")),
    "agreement in percent": (("exits", "RUN", "--agreements", "99"), 2, ("99", "at most 1")),
    "no device": (("exits", "RUN", "--device", "tpu"), 2, ("tpu", "cpu")),
}


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(
    name: str,
    job: tuple[Path, Source],
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments, code, says = BAD[name]
    monkeypatch.chdir(tmp_path)
    files = ["--train", str(job[1].train), "--validation", str(job[1].validation)]
    named = {"M": [str(job[0])], "RUN": [str(finished)], "OUT": ["out"], "DATA": files}
    before = (finished / "sweep.json").read_bytes()
    given = [word for argument in arguments for word in named.get(argument, [argument])]
    assert call(monkeypatch, *given) == code
    shown = capsys.readouterr()
    assert shown.out == "" and len(shown.err.strip().splitlines()) == 1, shown.err
    for word in says:
        assert word in shown.err
    assert list(tmp_path.iterdir()) == [], "nothing is written"
    assert (finished / "sweep.json").read_bytes() == before


def spoil(rows: str, kind: str) -> str:
    lines = rows.splitlines()
    spoilt = {
        "empty": "",
        "no rows": lines[0],
        "one row": "\n".join(lines[:2]),
        "no label": "\n".join([*lines[:5], "film is warm,"]),
    }
    return spoilt[kind] + "\n" * bool(spoilt[kind])


@pytest.mark.parametrize("kind", ["empty", "no rows", "one row", "no label"])
def test_bad_rows_are_one_line_with_exit_code_3(
    kind: str,
    job: tuple[Path, Source],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert job[1].train is not None
    bad = tmp_path / "bad.csv"
    bad.write_text(spoil(job[1].train.read_text(), kind))
    data = ("--train", bad, "--validation", job[1].validation, "--text", "text", "--label", "label")
    assert call(monkeypatch, "train", "--model", job[0], "--out", tmp_path / "out", *data) == 3
    shown = capsys.readouterr()
    assert len(shown.err.strip().splitlines()) == 1 and "bad.csv" in shown.err
    assert not (tmp_path / "out").exists()


def test_help_answers_in_half_a_second() -> None:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    program = "import sys; from dynabert import cli; sys.argv = ['dynabert', '--help']\ntry: cli.main()\nfinally: "
    program += "print('torch' in sys.modules, 'transformers' in sys.modules, 'numpy' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert "train" in shown.stdout and shown.stdout.splitlines()[-1] == "False False False"
    # What takes time is kept out, above. The clock is only a coarse net, on the best of three on a busy machine.
    times = []
    for _ in range(3):
        started = os.times().children_user
        subprocess.run([sys.executable, "-m", "dynabert", "--help"], capture_output=True, env=environment, check=True)
        times.append(os.times().children_user - started)
    assert min(times) < 0.5


def test_every_command_says_what_it_does(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (
        *("train", "measure", "pick", "extract", "export", "search", "predict", "card", "push", "report"),
        *("compare", "ablate", "exits", "attention", "demo"),
    ):
        assert call(monkeypatch, command, "--help") == 0
        assert len(capsys.readouterr().out.splitlines()) > 5
