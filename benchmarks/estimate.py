"""How well `dynabert train --dry-run` foretells time and memory: the dry run, then the run itself, for each stage.

    DYNABERT_DATA=DIR python benchmarks/estimate.py --json docs/results/estimate.json

MiniLM on 2,000 rows of SST-2, the two-stage recipe, one epoch a stage. The two run in processes of their own, one after
the other, so that neither finds the other's memory. What else the machine does meanwhile is in the error: the load is
told beside it.
"""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import MINILM, data_folder, finish, machine, options, table

from dynabert.estimate import estimate
from dynabert.hooks import Hooks, StepReport
from dynabert.memory import peak_memory
from dynabert.plan import Plan, Source
from dynabert.recipes import RECIPES, TEACHER, Stage
from dynabert.run import train
from dynabert.subnet import SubnetGrid


class Watch(Hooks):
    """Seconds of the steps and of the evaluations of each stage, and the most memory during it."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self.peak_bytes: dict[str, int] = {}
        self._peak, self._since = peak_memory(device), time.perf_counter()

    def started(self, stage: Stage, n_steps: int, step: int) -> None:
        """Begin a count."""
        self._peak, self._since = peak_memory(self.device), time.perf_counter()

    def stepped(self, report: StepReport) -> None:
        """What has passed was a step."""
        self._count(report.stage, report.stage)

    def evaluated(self, stage: Stage, step: int, score: float, best: bool) -> None:
        """What has passed was an evaluation."""
        self._count(f"{stage.name}: select", stage.name)

    def _count(self, part: str, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._since
        self._since, self.peak_bytes[stage] = now, self._peak()


def foretold(job: dict[str, Any], out: Path) -> dict[str, Any]:
    """The dry run."""
    started = time.perf_counter()
    cost = estimate(**job, out=out).to_dict()
    assert not out.exists(), "a dry run writes nothing"
    return cost | {"took_s": time.perf_counter() - started}


def measured(job: dict[str, Any], out: Path) -> dict[str, Any]:
    """The run."""
    watch, started = Watch(job["device"]), time.perf_counter()
    train(**job, out=out, hooks=watch)
    return {
        "total_s": time.perf_counter() - started,
        "seconds": watch.seconds,
        "stage_peak_bytes": watch.peak_bytes,
        "disk_bytes": sum(path.stat().st_size for path in out.rglob("*") if path.is_file()),
    }


def alone(function: Callable[..., dict[str, Any]], *arguments: object) -> dict[str, Any]:
    """Call a function in a fresh process of as many threads as this one."""
    context, threads = multiprocessing.get_context("spawn"), torch.get_num_threads()
    with ProcessPoolExecutor(1, mp_context=context, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        return pool.submit(function, *arguments).result()


def compare(expected: dict[str, Any], actual: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each part: what was foretold, what was measured, and the error in percent."""
    parts = {part["name"]: part for part in expected["parts"]}
    rows = [(f"{name}, s", parts[name]["total_s"], seconds) for name, seconds in actual["seconds"].items()]
    rows.append(("whole run, s", expected["total_s"], actual["total_s"]))
    peaks = actual["stage_peak_bytes"].items()
    rows += [(f"{name}, peak MB", parts[name]["peak_bytes"] / 1e6, peak / 1e6) for name, peak in peaks]
    rows.append(("disk, MB", expected["disk_bytes"] / 1e6, actual["disk_bytes"] / 1e6))
    return [
        {"what": what, "estimated": guess, "actual": true, "error %": 100 * (guess / true - 1)}
        for what, guess, true in rows
    ]


def main() -> None:
    """Run both, print the table."""
    chosen = options(__doc__, limit={"type": int, "default": 2000, "help": "training rows"})
    recipe = RECIPES["two-stage"].adjusted(epochs=1, lr=1e-4)
    plan = Plan(recipe=recipe, teacher=replace(TEACHER, epochs=1, lr=1e-4))
    limit = chosen.limit
    if chosen.quick:
        plan, limit = replace(plan, grid=SubnetGrid((1, 0.5), (1, 0.5))), 400
    source = Source("sst2", data_folder() / "sst2", limit=limit)
    job = {"model": MINILM, "source": source, "plan": plan, "device": chosen.device}
    loads = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as folder:
        expected = alone(foretold, job, Path(folder) / "run")
        loads.append(os.getloadavg()[0])
        actual = alone(measured, job, Path(folder) / "run")
        loads.append(os.getloadavg()[0])
    rows = compare(expected, actual)
    table(rows)
    print(f"the dry run took {expected['took_s']:.0f} s; load before, between, after: {loads}")
    result = {"machine": machine(chosen.device), "limit": limit, "loads": loads, "rows": rows}
    finish(result | {"estimate": expected, "run": actual}, chosen.json)


if __name__ == "__main__":
    main()
