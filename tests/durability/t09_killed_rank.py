"""T9: of two ranks one is killed at a random moment; the other leaves by itself, and the run goes on to the same bits.

The ranks are started without torchrun, which would end the other one too. Every third trial kills rank 0 while it
writes a checkpoint; the others kill either rank at a uniform random time of the training.
"""

import hashlib
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from harness import Check, Result, main
from ranks import start_ranks, wait_for
from safetensors.torch import load_file
from small_job import write_job

LONGEST_EXIT_S = 30


def command(job: Path, out: Path) -> list[object]:
    """Trains a tiny network by the sandwich recipe, with dropout and a checkpoint after every step."""
    rows = {"--train": job / "train.csv", "--validation": job / "dev.csv", "--text": "text", "--label": "label"}
    sizes = {"--recipe": "default", "--epochs": 2, "--teacher-epochs": 1, "--lr": 1e-3, "--batch-size": 8}
    other = {"--depths": "1,0.5", "--max-length": 32, "--precision": "fp32", "--checkpoint-minutes": 0, "--out": out}
    options = {"--model": job / "encoder", **rows, **sizes, **other}
    return ["-m", "dynabert", "train", "--no-latency", *(word for option in options.items() for word in option)]


def result_of(out: Path) -> dict[str, str]:
    """The sha256 of every tensor that a run leaves. Not of the files: the order of their metadata is not fixed."""
    return {
        f"{path.relative_to(out)} {name}": hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
        for path in sorted(out.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def wait_until(condition: Any, processes: list[subprocess.Popen[str]], pause_s: float) -> bool:
    """Wait for a condition; False where a process ends before."""
    while not condition():
        if any(process.poll() is not None for process in processes):
            return False
        time.sleep(pause_s)
    return True


def kill_one(job: Path, out: Path, rng: random.Random, *, trial: int, training_s: float) -> tuple[float, str] | None:
    """Kill one rank; seconds until the other has left, and what it said. None where the run had ended before."""
    processes = start_ranks(*command(job, out))
    try:
        if trial % 3 == 2:
            victim, rest = 0, rng.randrange(20)
            saving = wait_until(lambda: any((out / "checkpoints").glob(f"*-{rest + 1:08d}")), processes, 0.001)
            moment = saving and wait_until(lambda: any((out / "checkpoints").glob(".tmp-*")), processes, 0.0)
        else:
            victim = rng.randrange(2)
            moment = wait_until((out / "run.json").exists, processes, 0.01)
            time.sleep(rng.uniform(0, training_s))
        if not moment or processes[victim].poll() is not None:
            return None
        processes[victim].send_signal(signal.SIGKILL)
        began = time.monotonic()
        try:
            said, _ = processes[1 - victim].communicate(timeout=2 * LONGEST_EXIT_S)
        except subprocess.TimeoutExpired:
            said = "(it hangs)"
        if processes[1 - victim].returncode == 0:  # it had nothing left to wait for
            return None
        return time.monotonic() - began, f"{processes[1 - victim].returncode} {said.strip()}"
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def uninterrupted(job: Path, out: Path) -> float:
    """Train without a kill; seconds from the run folder to the end."""
    processes = start_ranks(*command(job, out))
    wait_until((out / "run.json").exists, processes, 0.01)
    began = time.monotonic()
    outcomes = wait_for(processes, timeout_s=300)
    if any(code for code, _ in outcomes):
        raise SystemExit(f"the uninterrupted run failed: {outcomes}")
    return time.monotonic() - began


def problems(said: str, seconds: float) -> list[str]:
    """What was wrong with how the other rank left: rank 0 draws bars, so of its output the lines of messages count."""
    code, _, text = said.partition(" ")
    messages = [line for line in text.splitlines() if line.startswith("dynabert: ")]
    found = [] if seconds <= LONGEST_EXIT_S else [f"left after {seconds:.1f} s"]
    if code != "74" or "Traceback" in text or len(messages) != 1:
        found.append(f"exit code {code}, said {text[-300:]!r}")
    return found


def run(result: Result, trials: int, rng: random.Random, folder: Path) -> None:
    """Kill, watch, resume, compare."""
    exits: list[float] = []
    identical = in_save = done = 0
    job = folder / "job"
    job.mkdir()
    write_job(job)
    training_s = uninterrupted(job, folder / "whole")
    expected = result_of(folder / "whole")
    while done < trials:
        out = folder / f"trial-{done}"
        killed = kill_one(job, out, rng, trial=done, training_s=training_s)
        if killed is None:  # it had ended before
            shutil.rmtree(out, ignore_errors=True)
            continue
        seconds, said = killed
        exits.append(seconds)
        in_save += bool(list((out / "checkpoints").glob(".tmp-*")))
        result.failures += [f"trial {done}: {problem}" for problem in problems(said, seconds)]
        resumed = wait_for(start_ranks(*command(job, out)), timeout_s=300)
        differing = dict(expected.items() ^ result_of(out).items())
        result.check(not any(code for code, _ in resumed), f"trial {done}: resuming failed: {resumed}")
        identical += result.check(not differing, f"trial {done}: {sorted(differing)[:5]} other than without the kill")
        done += 1
    result.figures |= {"kills": done, "while_saving": in_save, "identical": identical}
    result.figures |= {"slowest_exit_s": round(max(exits), 2), "one_run_s": round(training_s, 1)}


CHECK = Check("T9", "a killed rank ends the job, which resumes to the same bits", 10, run)

if __name__ == "__main__":
    main(CHECK)
