"""The form of a result of the scripts that start several processes: printed, as JSON, and as an exit code."""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def report(row: str, claim: str, trials: int, run: Callable[[int, int], tuple[dict[str, Any], list[str]]]) -> None:
    """Run one row of the table and leave with exit code 0 where its claim holds, else 1.

    :param trials: how many by default; ``--trials`` says otherwise.
    :param run: given trials and seed, what it measured and a line for each failure.
    """
    parser = argparse.ArgumentParser(description=claim)
    parser.add_argument("--trials", type=int, default=trials)
    parser.add_argument("--seed", type=int, default=20260)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    began = time.monotonic()
    figures, failures = run(options.trials, options.seed)
    figures |= {"seed": options.seed, "wall_s": round(time.monotonic() - began, 1)}
    listed = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in figures.items())
    print(f"{row:4} {'FAILED' if failures else 'passed'}: {claim}: {listed}")
    for failure in failures[:20]:
        print(f"     {failure}")
    if options.json:
        result = {"row": row, "claim": claim, "passed": not failures, "skipped": "", "figures": figures}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({**result, "failures": failures[:20]}, indent=2) + "\n")
    sys.exit(1 if failures else 0)
