"""Comparisons of one seed each, pooled: `dynabert.studies.pooling`.

    python runs/pool.py docs/results/all-compare-{sst2,cola,rte,trec}.json docs/results/seed-4[34]-compare-*.json \
        --json docs/results/seeds-compare.json

For seeds that were trained on machines that share no folder. On one machine `dynabert compare --seeds 3` does it.
"""

import argparse
from pathlib import Path

from dynabert.errors import DynabertError
from dynabert.files import write_json
from dynabert.studies.pooling import pooled


def main() -> None:
    """Print the table of each task and that of their mean; write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="compare.json of one task and seed each")
    parser.add_argument("--json", type=Path, help="write the mean, and each task, to this file")
    args = parser.parse_args()
    try:
        result = pooled(args.files)
        if args.json is not None:
            made_from = [file.name for file in args.files]
            tasks = [task.to_dict() for task in result.tasks]
            write_json(args.json, {**result.to_dict(), "tasks": tasks, "made_from": made_from})
    except (DynabertError, OSError) as error:
        parser.error(str(error))
    print("\n".join(table.table() for table in (result, *result.tasks)))


if __name__ == "__main__":
    main()
