"""T3: SIGTERM and Ctrl-C make a checkpoint and end with 143 and 130; a second signal ends the process at once."""

import random
import re
import signal
import time
from pathlib import Path
from typing import Any

from harness import Check, Job, Result, baseline, check_finished, good_steps, main, trial

from dynabert import run as run_module

LIMIT_S = 10.0
LARGE, LARGE_LIMIT_S = {"n_layers": 12, "hidden": 768, "n_neurons": 3072}, 30.0
"""The layers of bert-base: 85 million weights, of which a checkpoint holds up to four copies."""


def _stop(
    result: Result, job: Job, out: Path, delay_s: float, number: int, what: str, *, limit_s: float = LIMIT_S
) -> tuple[bool, bool, float]:
    """One stop; whether it hit, whether a stage was running, and how long it took."""
    child = job.start(out, *(["--checkpoint-steps", "1000000"] if limit_s > LIMIT_S else []))
    child.wait_ready()
    time.sleep(delay_s)
    if not child.send(number):
        return False, False, 0.0
    began = time.monotonic()
    code = child.wait()
    took = time.monotonic() - began
    if code == 0:  # the signal came when all was done
        return False, False, took
    result.check(code == 128 + number, f"{what}: exit code {code}, {child.lines()[-2:]}")
    said = [line for line in child.lines() if "stopped by" in line]
    result.check(len(said) == 1 and child.lines()[-1:] == said, f"{what}: said {child.lines()[-3:]}")
    result.check(took <= limit_s, f"{what}: took {took:.1f} s")
    saved = re.search(r"stage '(\w+)' is saved at step (\d+)", said[0]) if said else None
    if saved:
        result.check(int(saved[2]) in good_steps(out, saved[1]), f"{what}: no good checkpoint of {saved[0]}")
    return True, saved is not None, took


def _slow_save() -> None:
    """Make every save take long, so that a second signal comes inside one."""
    real = run_module.save_checkpoint

    def save(*arguments: Any, **settings: Any) -> Any:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            time.sleep(1)
        return real(*arguments, **settings)

    run_module.save_checkpoint = save  # type: ignore[assignment]


def _twice(result: Result, job: Job, out: Path, expected: dict[str, str], number: int) -> int:
    """A second signal while the first one's checkpoint is being written."""
    child = job.start(out, "--checkpoint-steps", "1000000", prepare=_slow_save)
    child.wait_ready()
    metrics = out / "metrics.jsonl"
    while not metrics.exists() and not child.ended():
        time.sleep(0.02)
    child.send(number)
    time.sleep(1.0)
    if not result.check(not child.ended(), f"second signal {number}: the first one did not save"):
        return 0
    child.send(number)
    began = time.monotonic()
    code = child.wait()
    took = time.monotonic() - began
    result.check(code == 128 + number and took < 2.0, f"second signal {number}: {code} after {took:.1f} s")
    return check_finished(result, job, out, expected, f"second signal {number}")


def _large(result: Result, folder: Path) -> float:
    """How long a stop takes whose checkpoint is that of a large encoder, inside a stage."""
    job, delay_s = Job(folder / "large", epochs=100, sizes=LARGE), 20.0
    while True:
        with trial(folder, 20_000) as out:
            hit, in_stage, took = _stop(result, job, out, delay_s, signal.SIGTERM, "large", limit_s=LARGE_LIMIT_S)
            if not result.check(hit, "large: it had ended before"):
                return 0.0
            if in_stage:
                return took
        delay_s *= 2  # a slow machine had not begun to train


def run(result: Result, trials: int, rng: random.Random, folder: Path) -> None:
    """Signals at uniform random times until so many have come inside a stage; every fifth is a Ctrl-C."""
    job = Job(folder / "job")
    expected, duration_s = baseline(Job)
    stops = inside = identical = starts = 0
    slowest = 0.0
    while inside < trials:
        starts += 1
        if not result.check(starts <= 10 * trials + 10, f"only {inside} of {starts} runs could be stopped in a stage"):
            break
        number = signal.SIGINT if stops % 5 == 4 else signal.SIGTERM
        with trial(folder, stops) as out:
            what = f"stop {stops} by {number.name}"
            hit, in_stage, took = _stop(result, job, out, rng.uniform(0, duration_s), number, what)
            if not hit:
                continue
            stops += 1
            inside += in_stage
            slowest = max(slowest, took)
            identical += check_finished(result, job, out, expected, what)
    twice = 0
    for number in (signal.SIGTERM, signal.SIGINT)[: trials // 10]:
        with trial(folder, 10_000 + number) as out:
            twice += _twice(result, job, out, expected, number)
    result.figures |= {"stops": stops, "inside_a_stage": inside, "identical": identical, "slowest_s": round(slowest, 2)}
    result.figures |= {"second_signals": twice}
    if trials >= CHECK.trials:
        result.figures["large_s"] = round(_large(result, folder), 1)


CHECK = Check("T3", "SIGTERM and Ctrl-C: checkpoint, exit 143 or 130, resumed to the same bits", 20, run)

if __name__ == "__main__":
    main(CHECK)
