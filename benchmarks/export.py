"""What it takes to cut sizes out of a trained network and to bring them where they run, one part at a time.

    python benchmarks/export.py --part memory --json docs/results/export-memory.json
    python benchmarks/export.py --part parity --run runs/four/trec --json docs/results/export-parity.json
    python benchmarks/export.py --part fusion --json docs/results/export-fusion.json
    python benchmarks/export.py --part bits --run runs/four/trec --json docs/results/export-bits.json

memory: the smallest size, (0.25, 0.5), of an elastic folder of the shape of bert-large (random weights, made on the
spot) is written as a small model, by the lazy extraction and by loading the whole network first; see export_memory.py.

parity: a trained network at full size and at (0.25, 0.5), exported by every engine in every type, and compared with
PyTorch over the validation split; see export_parity.py.

fusion: ONNX Runtime with attention as one operator, and spelt out; see export_fusion.py.

bits: int8 with weights of 8 and of 7 bits, against PyTorch over the validation split; see export_bits.py.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from common import finish, machine, options, table
from export_bits import bits
from export_fusion import fusion
from export_memory import memory
from export_parity import parity


def main() -> None:
    """Run a part, print, write."""
    chosen = options(
        __doc__,
        part={"choices": ("memory", "parity", "fusion", "bits"), "default": "memory", "help": "which part"},
        run={"type": Path, "help": "a finished run folder, for parity and bits"},
    )
    result: dict[str, object] = {"machine": machine("cpu"), "quick": chosen.quick}
    if chosen.part == "memory":
        result["memory"] = memory(quick=chosen.quick)
    else:
        parts: dict[str, Callable[..., list[dict[str, Any]]]] = {
            "parity": partial(parity, chosen.run),
            "bits": partial(bits, chosen.run),
            "fusion": fusion,
        }
        rows = parts[chosen.part](quick=chosen.quick)
        table(rows)
        result[chosen.part] = rows
    finish(result, chosen.json)


if __name__ == "__main__":
    main()
