"""T10: another run's folder is refused, every differing field named, and it can be forced where that is safe."""

import csv
import json
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import Check, Job, Result, killed_after, main, trial
from small_job import write_encoder

from dynabert.run_folder import FIXED, METRICS_FILE, RUN_FILE


def _interrupted(job: Job, out: Path) -> None:
    """A run that was killed at its second checkpoint of the sandwich stage."""
    code, lines = job.finish(out, prepare=killed_after(2))
    assert code == -signal.SIGKILL, lines[-3:]


def _changed(saved: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(saved, bool) or saved is None:
        return not saved
    if isinstance(saved, (int, float)):
        return saved + 1
    if isinstance(saved, str):
        return saved + "x"
    if isinstance(saved, list):
        return [*saved, "x"]
    return {**saved, "x": 1}


def _edited(out: Path, change: Callable[[dict[str, Any]], None]) -> None:
    saved = json.loads((out / RUN_FILE).read_text())
    change(saved["fingerprint"])
    (out / RUN_FILE).write_text(json.dumps(saved))


def _refused(result: Result, job: Job, out: Path, fields: tuple[str, ...], *extra: str) -> bool:
    """Exit code 2, one line, every field named, nothing changed."""
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != ".lock" and path.is_file()}
    code, lines = job.finish(out, *extra)
    said = [line for line in lines if line.startswith("dynabert: ")]
    good = code == 2 and len(said) == 1 and all(name in said[0] for name in fields)
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != ".lock" and path.is_file()}
    good = good and before == after
    return result.check(good, f"{fields} {extra}: exit code {code}, {lines[-1:]}, files changed: {before != after}")


def _forced(result: Result, job: Job, out: Path, fields: tuple[str, ...], *extra: str) -> bool:
    """It goes on, says what differed, and writes it down; the same command then goes on without force."""
    code, lines = job.finish(out, *extra, "--force-resume")
    said = [line for line in lines if "forced to go on though" in line]
    written = json.dumps(json.loads((out / RUN_FILE).read_text()).get("forced", ""))
    good = code == 0 and all(any(name in line for line in said) and name in written for name in fields)
    again, _ = job.finish(out, *extra)
    return result.check(good and again == 0, f"forced {fields} {extra}: {code}, {again}, {said}, {lines[-1:]}")


def _real_changes(job: Job, folder: Path) -> dict[tuple[str, ...], tuple[Job, tuple[str, ...]]]:
    """Commands that differ from the first one: the fields to be named, the job, and the options."""
    other_rows = Job(folder / "other-rows")
    with (other_rows.folder / "train.csv").open("a", newline="", encoding="utf-8") as file:
        csv.writer(file).writerow(("film is warm number 8", "good"))
    other_encoder = Job(folder / "other-encoder")
    shutil.rmtree(other_encoder.folder / "encoder")
    write_encoder(other_encoder.folder / "encoder", seed=9, n_layers=4, hidden=128, n_neurons=256)
    smaller = Job(folder / "smaller-encoder")
    shutil.rmtree(smaller.folder / "encoder")
    write_encoder(smaller.folder / "encoder", n_layers=4, hidden=64, n_neurons=128)
    return {
        ("seed",): (job, ("--seed", "7")),
        ("data",): (other_rows, ()),
        ("teacher",): (job, ("--teacher-lr", "3e-4")),
        ("widths", "depths"): (job, ("--widths", "1,0.5", "--depths", "1,0.5")),
        ("recipe",): (job, ("--lr", "2e-3")),
        ("precision", "warmup"): (job, ("--precision", "fp32", "--warmup", "0.1")),
        ("batch_size",): (job, ("--batch-size", "8")),
        ("model", "config"): (smaller, ()),
        ("model",): (other_encoder, ()),
    }


def run(result: Result, trials: int, rng: random.Random, folder: Path) -> None:
    """Every field of the fingerprint, changed in turn where the run wrote it down; then so many real changes."""
    job = Job(folder / "job")
    first = folder / "first"
    _interrupted(job, first)
    fields = list(json.loads((first / RUN_FILE).read_text())["fingerprint"])
    refused = 0
    for field in fields if trials > 3 else ["world_size"]:
        with trial(folder, fields.index(field)) as out:
            shutil.copytree(first, out)
            _edited(out, lambda saved, field=field: saved.update({field: _changed(saved[field])}))  # type: ignore[misc]
            refused += _refused(result, job, out, (field,))
            if field in FIXED:
                result.check(_refused(result, job, out, (field, "cannot be forced"), "--force-resume"), f"{field}")
    changes = _real_changes(job, folder)
    forced = tried = 0
    for number, (named, (other, extra)) in enumerate(list(changes.items())[:trials]):
        with trial(folder, 100 + number) as out:
            shutil.copytree(first, out)
            (out / METRICS_FILE).touch()
            tried += 1
            _refused(result, other, out, named, *extra)
            if set(named) & set(FIXED):
                forced += _refused(result, other, out, (*named, "cannot be forced"), *extra, "--force-resume")
            else:
                forced += _forced(result, other, out, named, *extra)
    result.figures |= {"fields": len(fields), "fields_refused": refused, "real_changes": tried, "forced_or_not": forced}


CHECK = Check("T10", "another run's folder is refused and every differing field named", 9, run)

if __name__ == "__main__":
    main(CHECK)
