"""Comparisons of one seed each, pooled: `dynabert.studies.pooling`.

    python runs/pool.py docs/results/all-compare-{sst2,cola,rte,trec}.json \
        docs/results/seed-4[34]-compare-{cola,rte,trec}.json --json docs/results/seeds-compare.json

For seeds that were trained on machines that share no folder. On one machine `dynabert compare --seeds 3` does it.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from dynabert.errors import DynabertError
from dynabert.files import write_json
from dynabert.studies.compare_figure import figure
from dynabert.studies.drawing import check_figure, save_chart
from dynabert.studies.pooling import pooled
from dynabert.studies.standings import Comparison


def main() -> None:
    """Print the table of each task and that of their mean; write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="compare.json of one task and seed each")
    parser.add_argument("--json", type=Path, help="write the mean, and each task, to this file")
    parser.add_argument("--same-rows", action="store_true", help="trust that files of one task are of the same rows")
    parser.add_argument("--plot", type=Path, help="draw all points of the first seed of each task: FILE.svg or .png")
    args = parser.parse_args()
    try:
        if args.plot is not None:
            check_figure(args.plot)
        result = pooled(args.files, same_rows=args.same_rows)
        if args.json is not None:
            tasks = [_without_points(task) for task in result.tasks]
            made_from = [file.name for file in args.files]
            write_json(args.json, {**_without_points(result), "tasks": tasks, "made_from": made_from})
        if args.plot is not None:
            save_chart(figure(result), args.plot)
    except (DynabertError, OSError) as error:
        parser.error(str(error))
    print("\n".join(table.table() for table in (result, *result.tasks)))


def _without_points(result: Comparison) -> dict[str, Any]:
    """Plain values for JSON; the points of each seed stand in the file that it is from."""
    return replace(result, sweeps={}, times={}).to_dict()


if __name__ == "__main__":
    main()
