"""T4: every published file is on disk before its folder has its name, and the name is on disk before the save returns."""

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
from dynabert.distill import Progress, Snapshot
for step in range(1, int(sys.argv[2]) + 1):
    tensors = {"weights/a": torch.full((1000,), float(step)), "optimizer/step/a": torch.tensor(1.0)}
    save_checkpoint(Path(sys.argv[1]), "width", Snapshot(tensors, Progress(step)), keep=2)
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
    code = "import os\nevents = []\nreal_fsync, real_rename, real_replace = os.fsync, os.rename, os.replace\n"
    code += "def fsync(fd):\n    real_fsync(fd)\n    events.append(f'fsync(0<{os.readlink(f\"/proc/self/fd/{fd}\")}>) = 0')\n"
    code += "def rename(a, b):\n    real_rename(a, b)\n    events.append(f'rename(\"{a}\", \"{b}\") = 0')\n"
    code += "os.fsync, os.rename, os.replace = fsync, rename, rename\n"
    code += WRITER + "\nprint('\\n'.join(events))\n"
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
        nexts = [name for name, path, _ in events[place:] if (name, path) == ("fsync", str(checkpoints))]
        deleted = [at for at, (name, _, to) in enumerate(events[place:]) if name == "rename" and "/.tmp-width" in to]
        synced = next((at for at, (n, p, _) in enumerate(events[place:]) if (n, p) == ("fsync", str(checkpoints))), None)
        if not nexts:
            found.append(f"{final.name}: its name was never forced to disk")
        elif deleted and synced is not None and deleted[0] < synced:
            found.append(f"{final.name}: an older one was deleted before its name was on disk")
    return published, found


def run(result: Result, trials: int, rng: random.Random, folder: Path) -> None:
    """So many saves of one process; strace where there is one."""
    strace = shutil.which("strace") is not None
    if strace:
        probe = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, check=False)
        strace = probe.returncode == 0
    events = (traced if strace else recorded)(folder, trials)
    published, found = violations(events, folder / "checkpoints")
    result.check(published == trials, f"{published} of {trials} saves were seen")
    result.failures += found
    result.figures |= {"saves": published, "violations": len(found), "seen_by": "strace" if strace else "os calls"}


CHECK = Check("T4", "every file is on disk before it has its name", 10, run)

if __name__ == "__main__":
    main(CHECK)
