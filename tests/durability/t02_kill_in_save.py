"""T2: killed at a given point inside a save, or in the windows around it, a run goes on to the same bits."""

import os
import random
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
from harness import (
    SAVE_EVERY,
    STAGES,
    Check,
    Job,
    Result,
    baseline,
    check_finished,
    good_steps,
    kill_now,
    leftovers,
    main,
    notes_of,
    trial,
)

from dynabert import files
from dynabert import run as run_module
from dynabert.checkpoint import CHECKPOINTS

IN_A_SAVE = (
    "mid-write",
    "pre-fsync",
    "post-fsync",
    "pre-rename",
    "post-rename",
    "pre-dir-fsync",
    "mid-retention-delete",
    "mid-manifest",
)
AROUND = ("stage published", "run.json", "clean-up at start", "evaluation")


class FailPoint:
    """Kills its process at one point of one save. `install` it in the process."""

    def __init__(self, kind: str, *, stage: str, save: int, nth: int, told: Path) -> None:
        self.kind, self.stage, self.save, self.left, self.told = kind, stage, save, nth, told
        self.saving = self.named = False
        self.n_saves = 0

    def install(self) -> None:
        real = run_module.save_checkpoint

        def save(folder: Path, stage: str, snapshot: Any, **settings: Any) -> Any:
            self.n_saves += stage == self.stage
            self.saving = stage == self.stage and self.n_saves == self.save
            if self.saving:
                self.told.write_text(str(snapshot.progress.step))
            try:
                return real(folder, stage, snapshot, **settings)
            finally:
                self.saving = False

        run_module.save_checkpoint = save  # type: ignore[assignment]
        getattr(self, "_" + self.kind.replace("-", "_"))()

    def hit(self) -> None:
        self.left -= 1
        if not self.left:
            kill_now()

    def _mid_write(self) -> None:
        real = safetensors.torch.save_file

        def save_file(tensors: Any, path: Path, *rest: Any) -> None:
            real(tensors, path, *rest)
            if self.saving:
                os.truncate(path, path.stat().st_size * self.left // 7)
                kill_now()

        safetensors.torch.save_file = save_file

    def _around(self, name: str, wanted: Callable[..., bool], *, after: bool = False) -> None:
        """Hit at a function of `os` where the save is on and its arguments are the ones wanted."""
        real = getattr(os, name)

        def call(*arguments: Any, **settings: Any) -> Any:
            matches = self.saving and wanted(*arguments)
            if matches and not after:
                self.hit()
            answer = real(*arguments, **settings)
            if matches and after:
                self.hit()
            return answer

        setattr(os, name, call)

    def _pre_fsync(self) -> None:
        self._around("fsync", lambda fd: stat.S_ISREG(os.fstat(fd).st_mode))

    def _post_fsync(self) -> None:
        self._around("fsync", lambda fd: stat.S_ISREG(os.fstat(fd).st_mode), after=True)

    def _pre_dir_fsync(self) -> None:
        self._around("fsync", lambda fd: stat.S_ISDIR(os.fstat(fd).st_mode))

    def _arrives(self, _: Any, target: Any) -> bool:
        return Path(target).parent.name == CHECKPOINTS and not Path(target).name.startswith(".")

    def _pre_rename(self) -> None:
        self.left = 1
        self._around("rename", self._arrives)

    def _post_rename(self) -> None:
        self.left = 1
        self._around("rename", self._arrives, after=True)

    def _mid_retention_delete(self) -> None:
        self._around("unlink", lambda *_: True)
        self._around("rmdir", lambda *_: True)

    def _mid_manifest(self) -> None:
        real = os.write

        def write(descriptor: int, data: Any) -> int:
            if self.saving and "MANIFEST" in os.readlink(f"/proc/self/fd/{descriptor}"):
                real(descriptor, bytes(data)[: len(data) * self.left // 7])
                kill_now()
            return real(descriptor, data)

        os.write = write


def _one_in_a_save(result: Result, job: Job, expected: dict[str, str], rng: random.Random, out: Path, kind: str) -> int:
    stage = rng.choice(STAGES[1:]) if kind == "mid-retention-delete" else rng.choice(STAGES)
    first = 3 if kind == "mid-retention-delete" else 1  # the third save is the first that deletes
    save = rng.randint(first, 2 if stage == STAGES[0] else 5)
    nth = {"pre-dir-fsync": 2, "mid-retention-delete": 4}.get(kind, 3)
    told = notes_of(out, "told")
    point = FailPoint(kind, stage=stage, save=save, nth=rng.randint(1, nth), told=told)
    code, lines = job.finish(out, prepare=point.install)
    what = f"{kind}, save {save} of {stage}"
    if not result.check(code == -signal.SIGKILL, f"{what}: not reached, the run ended with {code} {lines[-1:]}"):
        return 0
    saving, good = int(told.read_text()), good_steps(out, stage)
    result.check(saving - (good[-1] if good else 0) <= SAVE_EVERY, f"{what}: step {saving} is lost, good are {good}")
    return check_finished(result, job, out, expected, what)


def _kill_at(name: str, nth: int, *, module: Any = run_module, after: bool = False) -> Callable[[], None]:
    def install() -> None:
        left, real = nth, getattr(module, name)

        def call(*arguments: Any, **settings: Any) -> Any:
            nonlocal left
            left -= 1
            if not left and not after:
                kill_now()
            answer = real(*arguments, **settings)
            if not left:
                kill_now()
            return answer

        setattr(module, name, call)

    return install


def _kill_after_evaluation(nth: int) -> Callable[[], None]:
    def install() -> None:
        left, real = nth, run_module.RunHooks.evaluated

        def evaluated(*arguments: Any, **settings: Any) -> None:
            nonlocal left
            left -= 1
            real(*arguments, **settings)
            if not left:
                kill_now()

        run_module.RunHooks.evaluated = evaluated  # type: ignore[method-assign]

    return install


def _one_around(result: Result, job: Job, expected: dict[str, str], rng: random.Random, out: Path, kind: str) -> int:
    if kind == "clean-up at start":
        point = FailPoint("pre-rename", stage="sandwich", save=2, nth=1, told=notes_of(out, "told"))
        job.finish(out, prepare=point.install)
        result.check(any(".tmp-" in name for name in leftovers(out)), f"{kind}: nothing to clean up")
        install = _kill_at("unlink", rng.randint(1, 3), module=os)
    elif kind == "stage published":
        install = _kill_at("delete_checkpoints", rng.randint(1, 2), after=rng.random() < 0.5)
    elif kind == "evaluation":
        install = _kill_after_evaluation(rng.randint(1, 8))
    else:
        out.mkdir()  # as after a kill before run.json had its name
        if rng.random() < 0.5:
            (out / ".tmp-run.json-0123abcd").write_text('{"finger')
        install = _kill_at("_write_and_rename", 1, module=files, after=rng.random() < 0.5)
    code, lines = job.finish(out, prepare=install)
    if not result.check(code == -signal.SIGKILL, f"{kind}: not reached, the run ended with {code} {lines[-1:]}"):
        return 0
    return check_finished(result, job, out, expected, kind)


def run(result: Result, trials: int, rng: random.Random, folder: Path) -> None:
    """So many kills at each point in turn; a tenth more in the windows around saves."""
    job = Job(folder / "job")
    expected, _ = baseline(Job)
    identical = 0
    for number in range(trials):
        with trial(folder, number) as out:
            identical += _one_in_a_save(result, job, expected, rng, out, IN_A_SAVE[number % len(IN_A_SAVE)])
    around = max(1, trials // 5)
    identical_around = 0
    for number in range(around):
        with trial(folder, number) as out:
            identical_around += _one_around(result, job, expected, rng, out, AROUND[number % len(AROUND)])
    result.figures |= {"kills_in_a_save": trials, "identical": identical}
    result.figures |= {"kills_around_it": around, "identical_around": identical_around}


CHECK = Check("T2", "SIGKILL at every point of a save, resumed to the same bits", 40, run)

if __name__ == "__main__":
    main(CHECK)
