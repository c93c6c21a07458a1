"""Every row of docs/reliability.md that a script proves, one after the other: `make durability`."""

import argparse
import json
import os
import platform
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from harness import SEED, Check, torch

ROWS = {
    # Those that fork come before those that compute in this process: threads do not survive a fork.
    "t01_kill": 1,
    "t02_kill_in_save": 1,
    "t03_stop": 1,
    "t10_wrong_place": 1,
    "t06_disk_full": 1,
    "t04_order": 3,
    "t07_never_fewer": 4,
    "t08_same_result": 1,
    "t05_corrupt": 45,
    "t11_non_finite": 6,
    "t08c_two_processes": 0,
    "t09_killed_rank": 1,
}
"""The scripts, and how many trials a sample of each takes; for 0 the suite has another test of the claim."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Run all durability scripts; exit code 0 where every claim holds.")
    parser.add_argument("--sample", action="store_true", help="A few trials of each, for the test suite.")
    parser.add_argument("--rows", nargs="+", default=[], metavar="T1", help="These alone; of others the file keeps.")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    rows: list[dict[str, Any]] = []
    if options.rows and options.json and options.json.exists():
        rows = json.loads(options.json.read_text())["rows"]
    for script, sample in ROWS.items():
        if options.sample and not sample:
            continue
        check: Check = import_module(script).CHECK
        if options.rows and check.row not in options.rows:
            continue
        result = check(sample if options.sample else check.trials, options.seed)
        print(result.line(), *result.failures[:20], sep="\n     ", flush=True)
        rows = [row for row in rows if row["row"] != result.row] + [result.to_json()]
        if options.json:  # after every row, so that what was measured is not lost
            where = {"python": platform.python_version(), "torch": torch.__version__, "cores": os.cpu_count()}
            options.json.parent.mkdir(parents=True, exist_ok=True)
            rows.sort(key=lambda row: (len(row["row"].rstrip("c")), row["row"]))
            options.json.write_text(json.dumps({"where": where, "rows": rows}, indent=2) + "\n")
    sys.exit(0 if all(row["passed"] for row in rows) else 1)


if __name__ == "__main__":
    main()
