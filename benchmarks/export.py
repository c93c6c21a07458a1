"""What it takes to cut sizes out of a trained network and to bring them where they run, one part at a time.

    python benchmarks/export.py --part memory --json docs/results/export.json

memory: the smallest size, (0.25, 0.5), of an elastic folder of the shape of bert-large (random weights, made on the
spot) is written as a small model, by the lazy extraction and by loading the whole network first; see export_memory.py.
"""

from common import finish, machine, options
from export_memory import memory

PARTS = {"memory": memory}


def main() -> None:
    """Run the parts, print, write."""
    chosen = options(
        __doc__,
        part={"choices": [*PARTS, "all"], "default": "all", "help": "which part; all by default"},
    )
    names = list(PARTS) if chosen.part == "all" else [chosen.part]
    parts = {name: PARTS[name](quick=chosen.quick) for name in names}
    finish({**machine("cpu"), "quick": chosen.quick, **parts}, chosen.json)


if __name__ == "__main__":
    main()
