"""What the durability scripts share: a small job as a forked command, its traces, and the form of a result.

Importing takes seconds and a trial must not, so everything is imported once and each trial is a fork that runs the real
command line. Nothing here may compute with torch before the forks: its threads would not survive them.
"""

import argparse
import hashlib
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "src")]

import scipy.stats
import sklearn.metrics
import torch
import transformers.models.bert.modeling_bert
from small_job import write_encoder, write_rows

from dynabert import batches, cli, progress, readers, run
from dynabert.checkpoint import CHECKPOINTS, _is_good
from dynabert.distill import StageRun
from dynabert.files import sha256_of
from dynabert.hooks import Snapshot
from dynabert.rewire import Importance

torch.set_num_threads(1)
_PRELOADED = (scipy.stats, sklearn.metrics, transformers.models.bert.modeling_bert, batches, progress, readers)

distill = sys.modules["dynabert.distill"]  # `dynabert.distill` is the function

SEED = 20260
SAVE_EVERY = 5
STAGES = ("teacher", "sandwich")


@dataclass
class Result:
    """What a script says: whether its claim held, the figures, and a line for each failure."""

    row: str
    claim: str
    figures: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    skipped: str = ""

    @property
    def passed(self) -> bool:
        return not self.failures

    def check(self, holds: bool, what: str) -> bool:
        """Note a failure where something does not hold."""
        if not holds:
            self.failures.append(what)
        return holds

    def to_json(self) -> dict[str, Any]:
        return {
            "row": self.row,
            "claim": self.claim,
            "passed": self.passed,
            "skipped": self.skipped,
            "figures": self.figures,
            "failures": self.failures[:20],
        }

    def line(self) -> str:
        state = "FAILED" if self.failures else ("skipped: " + self.skipped if self.skipped else "passed")
        figures = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in self.figures.items())
        return f"{self.row:4} {state}: {self.claim}: {figures}"


@dataclass(frozen=True)
class Check:
    """One row: its claim, how many trials it takes at full size, and what does them."""

    row: str
    claim: str
    trials: int
    run: Callable[[Result, int, random.Random, Path], None]

    def __call__(self, trials: int, seed: int) -> Result:
        result = Result(self.row, self.claim)
        began = time.monotonic()
        folder = Path(tempfile.mkdtemp(prefix=f"dynabert-{self.row}-"))
        try:
            self.run(result, trials, random.Random(f"{self.row} {seed}"), folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        result.figures |= {"seed": seed, "wall_s": round(time.monotonic() - began, 1)}
        return result


def main(check: Check) -> None:
    """A script of one row: exit code 0 where the claim holds, else 1."""
    parser = argparse.ArgumentParser(description=check.claim)
    parser.add_argument("--trials", type=int, default=check.trials)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    result = check(options.trials, options.seed)
    print(result.line())
    for failure in result.failures[:20]:
        print(f"     {failure}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result.to_json(), indent=2) + "\n")
    sys.exit(0 if result.passed else 1)


class Lines(logging.Handler):
    """The warnings of the library."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@dataclass
class Child:
    """A command that runs in a fork."""

    pid: int
    log: Path
    ready: int
    code: int | None = None

    def wait_ready(self) -> None:
        """Return when the command has begun, so that it handles signals; or has ended."""
        os.read(self.ready, 1)

    def send(self, number: int) -> bool:
        """Send a signal; False where the command had ended before."""
        if self.ended():
            return False
        os.kill(self.pid, number)
        return True

    def ended(self) -> bool:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._end(status)
        return self.code is not None

    def wait(self) -> int:
        """The exit code; minus the number of the signal that ended it."""
        if self.code is None:
            self._end(os.waitpid(self.pid, 0)[1])
        assert self.code is not None
        return self.code

    def _end(self, status: int) -> None:
        self.code = os.waitstatus_to_exitcode(status)
        os.close(self.ready)

    def lines(self) -> list[str]:
        """What it wrote so far."""
        return [] if not self.log.exists() else self.log.read_text(errors="replace").splitlines()


class Job:
    """A corpus, an encoder with dropout, and the command that trains it by the sandwich recipe.

    :param folder: where its files go.
    :param epochs: of each of its two stages, fine-tuning the teacher and the sandwich.
    :param sizes: of the encoder, by default 4 layers and 128 wide.
    """

    def __init__(self, folder: Path, *, epochs: float = 2, sizes: dict[str, int] | None = None) -> None:
        self.folder, self.epochs = folder, epochs
        folder.mkdir(parents=True, exist_ok=True)
        write_rows(folder / "train.csv", 240, seed=1)
        write_rows(folder / "dev.csv", 40, seed=2)
        write_encoder(folder / "encoder", dropout=0.1, **(sizes or {"n_layers": 4, "hidden": 128, "n_neurons": 256}))

    def command(self, out: Path, *extra: str) -> list[str]:
        options = {
            "--model": self.folder / "encoder",
            "--train": self.folder / "train.csv",
            "--validation": self.folder / "dev.csv",
            "--text": "text",
            "--label": "label",
            "--recipe": "default",
            "--epochs": self.epochs,
            "--teacher-epochs": self.epochs / 2,
            "--lr": 1e-3,
            "--batch-size": 16,
            "--max-length": 16,
            "--checkpoint-steps": SAVE_EVERY,
            "--checkpoint-minutes": 1000,
            "--out": out,
        }
        words = [str(word) for option in options.items() for word in option]
        return ["dynabert", "train", *words, "--no-latency", *extra]

    def start(self, out: Path, *extra: str, prepare: Callable[[], None] | None = None) -> Child:
        """Run the command in a fork.

        :param extra: more options.
        :param prepare: changes what it likes in the fork before the command begins.
        """
        log = notes_of(out, "log")
        log.unlink(missing_ok=True)
        ready, tell = os.pipe()
        pid = os.fork()
        if pid:
            os.close(tell)
            return Child(pid, log, ready)
        code = 1
        try:
            os.close(ready)
            _to_file(log)
            signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell started this beside itself
            _record_ends(finals_of(out))
            if prepare is not None:
                prepare()
            app = cli.app

            def telling(**options: Any) -> Any:
                os.write(tell, b"x")
                return app(**options)

            cli.app = telling  # type: ignore[assignment]
            sys.argv = self.command(out, *extra)
            cli.main()
        except SystemExit as exit:
            code = exit.code if isinstance(exit.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def finish(self, out: Path, *extra: str, prepare: Callable[[], None] | None = None) -> tuple[int, list[str]]:
        """Run the command to its end; its exit code and lines."""
        child = self.start(out, *extra, prepare=prepare)
        return child.wait(), child.lines()


def _to_file(log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)


def notes_of(out: Path, kind: str) -> Path:
    """A path for what is written down of a run, outside its folder and, should that be on a small disk, off it."""
    root = next(parent for parent in out.parents if parent.name.startswith("dynabert-"))
    (root / "notes").mkdir(exist_ok=True)
    return root / "notes" / f"{out.name}.{kind}"


def finals_of(out: Path) -> Path:
    """Where the ends of a run's stages are written down."""
    return notes_of(out, "finals")


def _record_ends(finals: Path) -> None:
    """Write down the digest of everything a stage holds at its end, before its result is published.

    So wherever a run is killed afterwards, the digest of the stage that made the published result is there.
    """
    made: list[StageRun] = []
    train_stage = run.train_stage

    class Recorded(StageRun):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **settings)
            made.append(self)

    def recording(elastic: Any, stage: Any, *arguments: Any, **settings: Any) -> Any:
        progress = train_stage(elastic, stage, *arguments, **settings)
        finals.mkdir(exist_ok=True)
        (finals / stage.name).write_text(digest(made.pop().snapshot()))
        return progress

    distill.StageRun, run.train_stage = Recorded, recording  # type: ignore[misc, assignment]


def digest(snapshot: Snapshot) -> str:
    """One hash of the weights, of the optimizer's tensors, of the best weights and of the progress."""
    total = hashlib.sha256(repr(snapshot.progress).encode())
    for name, tensor in sorted(snapshot.tensors.items()):
        total.update(name.encode() + tensor.detach().contiguous().cpu().view(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def traces(out: Path) -> dict[str, str]:
    """All that two equal runs have in common: the end of every stage, and the published weights."""
    ends = {path.name: path.read_text() for path in sorted(finals_of(out).iterdir())}
    models = {name: sha256_of(out / name / "model.safetensors") for name in ("teacher", "elastic")}
    # Its content: the order of its header's entries, which safetensors draws at random, is no result.
    importance = Importance.load(out / "importance.safetensors")
    return ends | models | {"importance": f"{importance.heads.tolist()} {importance.neurons.tolist()}"}


def leftovers(out: Path) -> list[str]:
    """Temporary names in a run folder, and checkpoints of stages that are complete."""
    rubbish = [path for path in out.rglob("*") if path.name.startswith((".tmp-", ".old-")) or ".replaced-" in path.name]
    return [str(path.relative_to(out)) for path in [*rubbish, *(out / CHECKPOINTS).glob("*")]]


def good_steps(out: Path, stage: str) -> list[int]:
    """Steps of the checkpoints of a stage that verify, ascending."""
    found = sorted((out / CHECKPOINTS).glob(f"{stage}-*"))
    return [int(path.name.rsplit("-", 1)[1]) for path in found if ".replaced-" not in path.name and _is_good(path)]


def check_finished(result: Result, job: Job, out: Path, expected: dict[str, str], what: str, *extra: str) -> bool:
    """Run the command again, as a user would, and compare the end with the uninterrupted run's."""
    code, lines = job.finish(out, *extra)
    if not result.check(code == 0, f"{what}: the resumed run ended with {code}: {lines[-1:]}"):
        return False
    found = traces(out)
    differing = [name for name in expected if found.get(name) != expected[name]]
    same = result.check(not differing, f"{what}: {', '.join(differing)} differ from the uninterrupted run")
    return result.check(not leftovers(out), f"{what}: left behind {leftovers(out)}") and same


@contextmanager
def trial(folder: Path, number: int) -> Iterator[Path]:
    """A run folder for one trial, deleted afterwards."""
    out = folder / f"run{number}"
    yield out
    for path in (out, *notes_of(out, "log").parent.glob(f"run{number}.*")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@cache
def baseline(make: type[Job]) -> tuple[dict[str, str], float]:
    """The uninterrupted run of the job: its traces, and its wall time in seconds. Once for all scripts of a process."""
    folder = Path(tempfile.mkdtemp(prefix="dynabert-whole-"))
    try:
        job, out = make(folder / "job"), folder / "whole"
        began = time.monotonic()
        code, lines = job.finish(out)
        if code:
            raise SystemExit(f"the uninterrupted run failed: {lines[-3:]}")
        return traces(out), time.monotonic() - began
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def kill_now() -> None:
    """End this process as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


def killed_after(n_saves: int) -> Callable[[], None]:
    """Prepares a run to die right after so many checkpoints of its sandwich stage."""

    def prepare() -> None:
        left, real = n_saves, run.save_checkpoint

        def save(*arguments: Any, **settings: Any) -> Any:
            nonlocal left
            answer = real(*arguments, **settings)
            left -= arguments[1] == "sandwich"
            if not left:
                kill_now()
            return answer

        run.save_checkpoint = save  # type: ignore[assignment]

    return prepare
