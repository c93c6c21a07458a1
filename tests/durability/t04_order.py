"""T4: every published file is on disk before its folder has its name, and that name before the save returns."""

import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from harness import Check, Result, main

WRITER = """
import sys
from pathlib import Path
import torch
from dynabert.checkpoint import save_checkpoint
from dynabert.hooks import Progress, Snapshot
for step in range(1, int(sys.argv[2]) + 1):
    tensors = {"weights/a": torch.full((1000,), float(step)), "optimizer/step/a": torch.tensor(1.0)}
    save_checkpoint(Path(sys.argv[1]), "width", Snapshot(tensors, Progress(step)), keep=2)
"""

RECORDER = """
import os
events, real_fsync, real_rename = [], os.fsync, os.rename

def fsync(descriptor):
    real_fsync(descriptor)
    events.append("fsync(0<" + os.readlink(f"/proc/self/fd/{descriptor}") + ">) = 0")

def rename(source, target):
    real_rename(source, target)
    events.append(f'rename("{source}", "{target}") = 0')

os.fsync, os.rename, os.replace = fsync, rename, rename
"""

Event = tuple[str, str, str]
"""What was called (`fsync`, `rename`), on which path, and to which."""


def traced(folder: Path, n_saves: int) -> list[Event]:
    """The calls of a process that saves, as strace saw them return."""
    log = folder / "strace.log"
    calls = "fsync,fdatasync,rename,renameat,renameat2"
    command = ["strace", "-f", "-y", "-s", "4096", "-e", f"trace={calls}", "-o", str(log)]
    command += [sys.executable, "-c", WRITER, str(folder / "checkpoints"), str(n_saves)]
    source = str(Path(__file__).parents[2] / "src")
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": source}, capture_output=True)
    return list(_events(log.read_text()))


def _events(text: str) -> Iterator[Event]:
    for line in text.splitlines():
        if not line.rstrip().endswith("= 0"):
            continue
        if match := re.search(r"(?:fsync|fdatasync)\(\d+<([^>]*)>", line):
            yield "fsync", match[1], ""
        elif "rename" in line:
            names = re.findall(r'"([^"]*)"', line)
            yield "rename", names[0], names[1]


def recorded(folder: Path, n_saves: int) -> list[Event]:
    """The same from inside the process, for where strace is missing: the calls of Python's `os` alone."""
    code = RECORDER + WRITER + "print('\\n'.join(events))\n"
    command = [sys.executable, "-c", code, str(folder / "checkpoints"), str(n_saves)]
    source = str(Path(__file__).parents[2] / "src")
    ran = subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": source}, capture_output=True, text=True)
    return list(_events(ran.stdout))


def violations(events: list[Event], checkpoints: Path) -> tuple[int, list[str]]:
    """How many checkpoints were published, and what was out of order: fsync(file) < rename < fsync(folder above)."""
    found, published = [], 0
    for place, (kind, source, target) in enumerate(events):
        final = Path(target)
        if kind != "rename" or final.parent != checkpoints or final.name.startswith("."):
            continue
        published += 1
        before = {path for name, path, _ in events[:place] if name == "fsync"}
        for needed in ("state.safetensors", "state.json"):
            if f"{source}/{needed}" not in before:
                found.append(f"{final.name}: {needed} had its name before it was on disk")
        manifests = [path for path in before if path.startswith(f"{source}/.tmp-MANIFEST.json")]
        if not manifests:
            found.append(f"{final.name}: the manifest had its name before it was on disk")
        if source not in before:
            found.append(f"{final.name}: its entries were not on disk when it got its name")
        found += _after(events[place:], checkpoints, final.name)
    return published, found


def _after(events: list[Event], checkpoints: Path, name: str) -> list[str]:
    """What was out of order once a checkpoint had its name."""
    synced = [at for at, (kind, path, _) in enumerate(events) if (kind, path) == ("fsync", str(checkpoints))]
    deleted = [at for at, (kind, _, to) in enumerate(events) if kind == "rename" and "/.tmp-width" in to]
    if not synced:
        return [f"{name}: its name was never forced to disk"]
    if deleted and deleted[0] < synced[0]:
        return [f"{name}: an older one was deleted before its name was on disk"]
    return []


def run(result: Result, trials: int, rng: random.Random, folder: Path) -> None:
    """So many saves of one process, seen from inside, and at full size by strace where there is one."""
    strace = shutil.which("strace") is not None
    if strace and trials >= CHECK.trials:
        probe = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, check=False)
        strace = probe.returncode == 0
    for way in [recorded, traced] if strace and trials >= CHECK.trials else [recorded]:
        place = folder / way.__name__
        place.mkdir()
        published, found = violations(way(place, trials), place / "checkpoints")
        result.check(published == trials, f"{way.__name__}: {published} of {trials} saves were seen")
        result.failures += found
        result.figures |= {f"saves_{way.__name__}": published, f"violations_{way.__name__}": len(found)}
    if not strace:
        result.skipped = "no strace: only the calls of Python itself were seen"


CHECK = Check("T4", "every file is on disk before it has its name", 10, run)

if __name__ == "__main__":
    main(CHECK)
