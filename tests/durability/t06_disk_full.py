"""T6: a disk that fills up in the middle harms nothing that was saved, and the run goes on when there is space."""

import os
import random
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import (
    STAGES,
    Check,
    Job,
    Result,
    baseline,
    check_finished,
    distill,
    good_steps,
    leftovers,
    main,
    trial,
)

DISK = 256 * 2**20


@contextmanager
def small_disk(folder: Path, size: int = DISK) -> Iterator[Path | None]:
    """A file system of its own, or None where this user may not mount one."""
    folder.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(options, capture_output=True, check=False).returncode == 0
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(ballast: Path, leave: int) -> None:
    """Use up the disk but for some bytes."""
    free = shutil.disk_usage(ballast.parent).free
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, free - leave))


def at_step(stage: str, step: int, action: Callable[[], None]) -> Callable[[], None]:
    """A preparation that does something when a stage comes to a step."""

    def install() -> None:
        plain = distill.StageRun

        class Acting(plain):  # type: ignore[misc, valid-type, name-defined]
            def step(self, *, stop: bool = False) -> Any:
                if (self.stage.name, self.progress.step) == (stage, step):
                    action()
                return super().step(stop=stop)

        distill.StageRun = Acting  # type: ignore[attr-defined]

    return install


def _full(result: Result, job: Job, out: Path, expected: dict[str, str], prepare: Callable[[], None], what: str) -> int:
    """A run that meets a full disk: 74 in one line, nothing temporary, every checkpoint good; then it goes on."""
    code, lines = job.finish(out, prepare=prepare)
    said = [line for line in lines if line.startswith("dynabert: ") and "trying again" not in line]
    result.check(code == 74, f"{what}: exit code {code}, {lines[-2:]}")
    result.check(bool(said) and "cannot read or write" in said[-1], f"{what}: said {said[-1:]}")
    temporary = [name for name in leftovers(out) if ".tmp-" in name or ".old-" in name]
    result.check(not temporary, f"{what}: left behind {temporary}")
    for stage in STAGES:
        damaged = len(list((out / "checkpoints").glob(f"{stage}-*"))) - len(good_steps(out, stage))
        result.check(damaged == 0, f"{what}: {damaged} checkpoints of {stage} are damaged")
    (out.parent / "ballast").unlink(missing_ok=True)
    return code == 74 and check_finished(result, job, out, expected, what)


def _on_small_disks(
    result: Result, job: Job, expected: dict[str, str], trials: int, rng: random.Random, folder: Path
) -> None:
    size = checkpoint_bytes(job)
    good = 0
    with small_disk(folder / "disk") as disk:
        if disk is None:
            result.skipped = "no tmpfs for this user: only the limit on file sizes was tried"
            return
        for number in range(trials):
            with trial(disk, number) as out:
                stage, step, leave = _place(rng, size)
                fill_it = at_step(stage, step, lambda leave=leave: fill(disk / "ballast", leave))  # type: ignore[misc]
                what = f"{leave} bytes left at step {step} of {stage}"
                good += _full(result, job, out, expected, fill_it, what)
        result.figures |= {"disks_filled": trials, "identical": good}
        if trials == 1:  # a sample: waiting alone takes four runs
            return
        with trial(disk, 999) as out:
            result.figures["waited_and_done"] = _waits(result, job, out, expected, disk)


def _place(rng: random.Random, size: int) -> tuple[str, int, int]:
    """Where the disk fills up, and how much it leaves: less than the next checkpoint needs."""
    stage = rng.choice(STAGES)
    return stage, rng.randint(1, 9) if stage == STAGES[0] else rng.randint(1, 19), rng.randrange(size)


def checkpoint_bytes(job: Job) -> int:
    """About what the weights alone have; a checkpoint has at least three times that."""
    return (job.folder / "encoder" / "model.safetensors").stat().st_size


def _waits(result: Result, job: Job, out: Path, expected: dict[str, str], disk: Path) -> int:
    """With --on-disk-full wait the run goes on by itself; and SIGTERM ends the waiting with 74."""
    prepare = at_step("sandwich", 7, lambda: fill(disk / "ballast", 1000))
    child = job.start(out, "--on-disk-full", "wait", prepare=prepare)
    while not any("waiting for space" in line for line in child.lines()) and not child.ended():
        time.sleep(0.1)
    time.sleep(1)
    waited = not child.ended()
    (disk / "ballast").unlink()
    code = child.wait()
    result.check(waited and code == 0, f"waiting: exit code {code}, {child.lines()[-2:]}")
    done = code == 0 and check_finished(result, job, out, expected, "waiting")
    with trial(disk, 998) as other:
        child = job.start(other, "--on-disk-full", "wait", prepare=prepare)
        while not any("waiting for space" in line for line in child.lines()) and not child.ended():
            time.sleep(0.1)
        child.send(signal.SIGTERM)
        result.check(child.wait() == 74, f"stopped while waiting: {child.code}, {child.lines()[-2:]}")
        (disk / "ballast").unlink()
        done += check_finished(result, job, other, expected, "stopped while waiting")
    return done


def _preflight(result: Result, job: Job, folder: Path) -> None:
    """A disk that is too small is refused before anything is written, with both figures."""
    with small_disk(folder / "tiny", 4 * 2**20) as disk:
        if disk is None:
            return
        code, lines = job.finish(disk / "run")
        figures = re.search(r"needs ([\d.]+) MB .* has ([\d.]+) MB free", lines[-1]) if lines else None
        result.check(code == 74 and figures is not None, f"preflight: {code}, {lines[-1:]}")
        result.check(not (disk / "run").exists(), "preflight: the run folder was made")
        if figures:
            result.figures["preflight"] = f"needs {figures[1]} MB, {figures[2]} MB free"


def _limited_files(
    result: Result, job: Job, expected: dict[str, str], trials: int, rng: random.Random, folder: Path
) -> None:
    """The same by a limit on the size of a file, which needs no rights."""
    size = checkpoint_bytes(job)
    good = 0
    for number in range(trials):
        with trial(folder, number) as out:
            stage, step, leave = _place(rng, size)

            def limit(leave: int = leave) -> None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (leave, leave))

            what = f"files of at most {leave} bytes from step {step} of {stage}"
            good += _full(result, job, out, expected, at_step(stage, step, limit), what)
    result.figures |= {"file_size_limits": trials, "identical_after_limits": good}


def run(result: Result, trials: int, rng: random.Random, folder: Path) -> None:
    """So many full disks, half as many limits on file sizes, waiting, and the look at the disk at the start."""
    job = Job(folder / "job")
    expected, _ = baseline(Job)
    _on_small_disks(result, job, expected, trials, rng, folder)
    _limited_files(result, job, expected, max(1, trials // 2), rng, folder)
    _preflight(result, job, folder)


CHECK = Check("T6", "a full disk: 74, nothing good harmed, resumed to the same bits", 20, run)

if __name__ == "__main__":
    main(CHECK)
