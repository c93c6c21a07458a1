"""The run folder: whose it is, who works in it, whether it has room, and the log of its metrics."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dynabert import failures, run_folder
from dynabert.errors import SettingError, StorageError
from dynabert.run_folder import MetricsLog, differences, locked, opened, read_metrics, space_needed

IDENTITY = {"model": "abc", "seed": 1, "recipe": {"stages": [{"lr": 1e-3}, {"lr": 2e-3}]}, "widths": [1.0, 0.5]}
CALLED = {"model": "encoder"}


def open_once(out: Path, identity: dict[str, object] | None = None, *, needed: int = 0, force: bool = False) -> None:
    with opened(out, identity or IDENTITY, CALLED, needed=lambda: needed, force=force):
        pass


def test_a_folder_is_made_and_taken_up_again(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "run"
    open_once(out)
    assert json.loads((out / "run.json").read_text()) == {"fingerprint": IDENTITY, **CALLED}
    (out / "stages" / ".tmp-width-0123abcd").mkdir(parents=True)
    (out / "checkpoints" / ".tmp-width-00000005-0123abcd").mkdir(parents=True)
    (out / ".tmp-run.json-0123abcd").touch()
    open_once(out)
    assert not list(out.rglob(".tmp-*")), "what interrupted writes had left is gone"


def test_a_recipe_that_was_given_another_name_is_the_same(tmp_path: Path) -> None:
    stages = [{"name": "width"}, {"name": "depth"}]
    open_once(tmp_path / "run", {**IDENTITY, "recipe": {"name": "default", "stages": stages}})
    open_once(tmp_path / "run", {**IDENTITY, "recipe": {"name": "two-stage", "stages": stages}})
    with pytest.raises(SettingError, match="recipe"):
        open_once(tmp_path / "run", {**IDENTITY, "recipe": {"name": "paper", "stages": stages}})


def test_going_on_elsewhere_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def open_with(n_threads: int) -> None:
        called = {"machine": {"n_threads": n_threads, "torch": "2.13.0"}}
        with opened(tmp_path, IDENTITY, called, needed=lambda: 0):
            pass

    open_with(1)
    open_with(1)
    assert "last bits" not in caplog.text
    open_with(2)
    assert "last bits may come out otherwise" in caplog.text and "n_threads 1 there, 2 here" in caplog.text


@pytest.mark.parametrize("left", [(), (".lock",), (".lock", ".tmp-run.json-0123abcd")])
def test_a_start_that_was_cut_short_can_be_repeated(tmp_path: Path, left: tuple[str, ...]) -> None:
    for name in left:
        (tmp_path / name).write_text("half")
    open_once(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "run.json"]


def test_every_field_that_differs_is_named_with_its_place(tmp_path: Path) -> None:
    open_once(tmp_path)
    other = {"model": "abc", "seed": 2, "recipe": {"stages": [{"lr": 1e-3}, {"lr": 5e-3}]}, "added": 1}
    with pytest.raises(SettingError) as caught:
        open_once(tmp_path, other)
    line = str(caught.value)
    assert "seed, recipe, widths, added differ" in line and "--force-resume" in line and "\n" not in line
    assert "seed 1 there, 2 here; recipe.stages.1.lr 0.002 there, 0.005 here; widths [1.0, 0.5] there" in line
    assert differences(IDENTITY, IDENTITY) == ([], [])


def test_force_goes_on_and_writes_down_what_differed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    open_once(tmp_path)
    open_once(tmp_path, {**IDENTITY, "seed": 2}, force=True)
    saved = json.loads((tmp_path / "run.json").read_text())
    assert saved["fingerprint"]["seed"] == 2 and saved["forced"][0]["differed"] == ["seed 1 there, 2 here"]
    assert "forced to go on though seed 1 there, 2 here" in caplog.text
    open_once(tmp_path, {**IDENTITY, "seed": 2})
    with pytest.raises(SettingError, match="model cannot be forced"):
        open_once(tmp_path, {**IDENTITY, "seed": 3, "model": "xyz"}, force=True)


HOLDER = """
import sys, time
from pathlib import Path
from dynabert.run_folder import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_folder_in_use_is_refused_until_that_process_is_gone(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    with pytest.raises(SettingError, match=f"is in use by process {holder.pid} on ") as caught, locked(tmp_path):
        pass
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2
    holder.kill()
    holder.communicate()
    with locked(tmp_path):
        pass
    with locked(tmp_path):  # and its end frees it
        pass


def test_too_little_space_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="MB free"):
        open_once(tmp_path / "run", needed=10**18)
    assert not (tmp_path / "run").exists()
    open_once(tmp_path / "run")
    with pytest.raises(StorageError, match="MB free"):
        open_once(tmp_path / "run", needed=10**18)


def test_space_is_for_what_is_still_to_be_written(tmp_path: Path) -> None:
    folders, checkpoints = [tmp_path / name for name in ("teacher", "elastic")], tmp_path / "checkpoints"

    def needed() -> int:
        return space_needed(folders, checkpoints, weight_bytes=100, keep=2)

    assert needed() == 2 * 100 + 3 * 400
    folders[0].mkdir()
    (checkpoints / "width-00000005").mkdir(parents=True)
    assert needed() == 100 + 2 * 400
    folders[1].mkdir()
    assert needed() == 0


# Metrics


def test_a_line_that_was_cut_short_is_removed_and_the_last_of_a_step_counts(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.write({"stage": "width", "step": 1, "losses": {"w1": 1.0}})
    log.write({"stage": "width", "step": 1, "select_score": 0.5})
    with path.open("a") as file:
        file.write('{"stage": "width", "st')
    assert len(read_metrics(path)) == 2, "readers pass over it"
    MetricsLog(path).write({"stage": "width", "step": 1, "losses": {"w1": float("nan")}, "skipped": (3, 4)})
    assert all(json.loads(line) for line in path.read_text().splitlines())
    first, last = read_metrics(path)
    assert first["select_score"] == 0.5 and last["losses"] == {"w1": None} and last["skipped"] == [3, 4]


def test_a_power_cut_does_not_break_readers(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"stage": "a", "step": 1}\n' + bytes(300) + b'\n[1]\n{"stage": "a", "step": 2}\n\xff{\n')
    assert [line["step"] for line in read_metrics(path)] == [1, 2]


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.write({"step": 1})
    before, real, calls = path.read_bytes(), os.write, iter(range(2))

    def full(descriptor: int, data: bytes) -> int:
        if next(calls) == 0:
            return real(descriptor, bytes(data[:5]))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_folder.os, "write", full)
    with pytest.raises(StorageError, match="ENOSPC") as caught:
        log.write({"step": 2})
    assert path.read_bytes() == before and failures.is_full(caught.value)
