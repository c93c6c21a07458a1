"""The run folder as a place: whose it is, who works in it, whether it has room, and the log of its metrics.

run.json           what the run is made of (its fingerprint), and what it was called with
metrics.jsonl      a line for each reported step; of lines for the same step the last one counts
.lock              locked by the process that works here; the lock goes with that process, however it ends
"""

import fcntl
import json
import logging
import math
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dynabert.checkpoint import CHECKPOINTS
from dynabert.errors import ModelFileError, SettingError
from dynabert.failures import check_space
from dynabert.files import read_json, storage_errors, write_json
from dynabert.folders import clean_temporary
from dynabert.plan import as_now

RUN_FILE, METRICS_FILE, LOCK_FILE = "run.json", "metrics.jsonl", ".lock"

FIXED = ("format_version", "model", "config", "labels", "tokenizer")
"""Fields that nothing can be forced over: they decide what the tensors are."""

COPIES = 4
"""Tensors of a checkpoint, in networks: weights, two moments of the optimizer, best weights."""

MACHINE = "machine"
"""What run.json calls the place where the run began: with other threads, versions or devices sums round otherwise."""

log = logging.getLogger("dynabert")


@contextmanager
def opened(
    out: Path,
    identity: dict[str, Any],
    called: dict[str, Any],
    *,
    needed: Callable[[], int],
    force: bool = False,
) -> Iterator[None]:
    """Make a run folder, or go on with one of this very run; nobody else works in it while the block runs.

    :param out: the folder.
    :param identity: the fingerprint of the run.
    :param called: what else run.json says.
    :param needed: bytes that the run will still write, asked before anything is written.
    :param force: go on with a run of another fingerprint, and log what differed.
    :raises SettingError: a folder of something else, of another run, or in use.
    :raises StorageError: too little space, or the folder cannot be written.
    """
    identity = json.loads(json.dumps(identity))
    known = (out / RUN_FILE).exists()
    if not known and out.exists() and not _is_new(out):
        raise SettingError(f"{out} is not empty and not a run folder; give another --out")
    if not known:
        check_space(out, needed())
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        if (out / RUN_FILE).exists():  # asked again: only now nobody can change it
            _take_up(out, identity, called, force=force)
            check_space(out, needed())
        else:
            clean_temporary(out)
            write_json(out / RUN_FILE, {"fingerprint": identity, **called})
        yield


def _is_new(out: Path) -> bool:
    """Whether a folder holds nothing, or only what a start that was cut short leaves."""
    return out.is_dir() and all(
        entry.name == LOCK_FILE or entry.name.startswith(f".tmp-{RUN_FILE}-") for entry in out.iterdir()
    )


def known_identity(out: Path) -> dict[str, Any]:
    """The fingerprint of the run that a folder is of; empty where there is none yet.

    :raises ModelFileError: a damaged one.
    """
    path = out / RUN_FILE
    saved = read_json(path) if path.exists() else {}
    identity = saved.get("fingerprint", {}) if isinstance(saved, dict) else None
    if not isinstance(identity, dict):
        raise ModelFileError(f"{path} is not what `dynabert train` writes; give another --out")
    return as_now(identity)


def _take_up(out: Path, identity: dict[str, Any], called: dict[str, Any], *, force: bool) -> None:
    former, saved = known_identity(out), dict(read_json(out / RUN_FILE))
    fields, lines = differences(former, identity)
    fixed = [name for name in fields if name in FIXED]
    if fields and (fixed or not force):
        advice = (
            f"give another --out: {', '.join(fixed)} cannot be forced"
            if fixed
            else "give another --out, or go on nevertheless with --force-resume"
        )
        raise SettingError(f"{out} belongs to another run: {', '.join(fields)} differ ({'; '.join(lines)}); {advice}")
    log.warning("%s exists and is %s: going on where it was", out, "of another run" if fields else "of this run")
    there = saved.get(MACHINE, {})  # of some time ago it says less
    _, elsewhere = differences(there, {name: value for name, value in called.get(MACHINE, {}).items() if name in there})
    if elsewhere:
        log.warning("its last bits may come out otherwise than without the interruption: %s", "; ".join(elsewhere))
    for folder in (out, out / "stages", out / CHECKPOINTS):
        clean_temporary(folder)
    if fields:
        for line in lines:
            log.warning("forced to go on though %s", line)
        forced = [*saved.get("forced", []), {"time": round(time.time(), 1), "differed": lines}]
        write_json(out / RUN_FILE, {**saved, "fingerprint": identity, **called, "forced": forced})


def differences(there: dict[str, Any], here: dict[str, Any]) -> tuple[list[str], list[str]]:
    """What differs between two fingerprints.

    :return: the names of the fields, and a line for each value, which for a nested field says where in it.
    """
    fields, lines = [], []
    for name in dict.fromkeys([*there, *here]):
        if there.get(name) != here.get(name):
            fields.append(name)
            lines += list(_differing(name, there.get(name), here.get(name)))
    return fields, lines


def _differing(name: str, there: object, here: object) -> Iterator[str]:
    if isinstance(there, dict) and isinstance(here, dict):
        for key in dict.fromkeys([*there, *here]):
            if there.get(key) != here.get(key):
                yield from _differing(f"{name}.{key}", there.get(key), here.get(key))
    elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here) and len(there) > 0:
        if all(isinstance(value, dict) for value in (*there, *here)):
            for number, (old, new) in enumerate(zip(there, here, strict=True)):
                if old != new:
                    yield from _differing(f"{name}.{number}", old, new)
        else:
            yield f"{name} {_brief(there)} there, {_brief(here)} here"
    else:
        yield f"{name} {_brief(there)} there, {_brief(here)} here"


def _brief(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Be the only one who works in a folder while the block runs.

    :raises SettingError: another process does.
    """
    with storage_errors(out):
        descriptor = os.open(out / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
            raise SettingError(f"{out} is in use by {who}; wait until it has ended") from None
        except OSError as error:  # a file system without locks
            log.warning("cannot lock %s (%s): make sure that no other process works in it", out, error)
        with suppress(OSError):  # only for the message above
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)  # and with it the lock


def space_needed(folders: list[Path], checkpoints: Path, *, weight_bytes: int, keep: int) -> int:
    """Bytes that a run will still write: its models, and the checkpoints that stay beside the one being written.

    :param folders: of the models, those that are there included.
    :param checkpoints: the folder of the checkpoints.
    :param weight_bytes: of the network.
    :param keep: how many checkpoints stay.
    """
    left = sum(not folder.exists() for folder in folders)
    there = sum(1 for _ in checkpoints.iterdir()) if checkpoints.is_dir() else 0
    return left * weight_bytes + COPIES * weight_bytes * max(1, keep + 1 - there) if left else 0


class MetricsLog:
    """Appends JSON lines, each whole or not at all. A line that a crash cut short is removed when the log is opened.

    :param path: the file; its folder must exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with storage_errors(path):
            if path.exists():
                whole = path.read_bytes().rfind(b"\n") + 1
                if whole < path.stat().st_size:
                    os.truncate(path, whole)

    def write(self, line: dict[str, Any]) -> None:
        """Append a line, with the time; NaN and infinity, which JSON does not have, become null.

        :raises StorageError: it cannot be written; the file is then as it was.
        """
        data = (json.dumps(_plain({"time": round(time.time(), 1), **line}), allow_nan=False) + "\n").encode()
        with storage_errors(self.path):
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                size = os.fstat(descriptor).st_size
                try:
                    rest = memoryview(data)
                    while rest:
                        rest = rest[os.write(descriptor, rest) :]
                except BaseException:
                    os.ftruncate(descriptor, size)
                    raise
            finally:
                os.close(descriptor)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file in the order written, of those for the same step and kind the last.

    What is no line of JSON, as a power cut can leave, is passed over.
    """
    kept: dict[tuple[Any, ...], dict[str, Any]] = {}
    with storage_errors(path):
        lines = path.read_bytes().split(b"\n")
    for text in lines:
        with suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict):
                key = (line.get("stage"), line.get("step"), "select_score" in line)
                kept.pop(key, None)
                kept[key] = line
    return list(kept.values())


def _plain(value: Any) -> Any:  # noqa: ANN401 (any nesting of plain values)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
