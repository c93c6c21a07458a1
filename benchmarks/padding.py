"""How much padding training computes: tokens of the batches over those of their rows, from sorted pools or at random.

    DYNABERT_DATA=DIR python benchmarks/padding.py --json docs/results/padding.json

Batches of 32 rows, at most 128 tokens (IMDB also at 512), MiniLM's tokenizer. What is above 1 is what variable-length
attention could save at most. No model runs.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
from common import MINILM, data_folder, finish, options, table

from dynabert.batches import Batches, encode
from dynabert.loading import load_tokenizer
from dynabert.plan import Source

CASES = (("sst2", 128), ("mnli", 128), ("qnli", 128), ("imdb", 128), ("imdb", 512))
BATCH = 32


def padding(task: str, max_length: int, limit: int, folder: Path) -> dict[str, Any]:
    """One row of the table."""
    _, roles = Source(task, folder, limit=limit).load()
    encoded = encode(load_tokenizer(MINILM), roles.train, max_length)
    lengths = np.array([len(tokens) for tokens in encoded.input_ids])
    batches = Batches(encoded, batch_size=BATCH, seed=42, pad_id=0)
    ours = sum(math.prod(batches.shape(step)) for step in range(len(batches)))
    drawn = np.random.default_rng(42).permutation(lengths)[: len(lengths) // BATCH * BATCH].reshape(-1, BATCH)
    random = drawn.max(1).sum() * BATCH / drawn.sum()
    return {
        "task": task,
        "max_length": max_length,
        "mean_length": float(lengths.mean()),
        "sorted_pools": ours / lengths.sum(),
        "random_rows": float(random),
        "padded_to_max": max_length / float(lengths.mean()),
    }


def main() -> None:
    """Print the table, write JSON."""
    chosen = options(__doc__)
    limit = 500 if chosen.quick else 4000
    rows = [padding(task, max_length, limit, data_folder()) for task, max_length in CASES]
    table(rows)
    finish({"rows": rows, "limit": limit, "batch_size": BATCH}, chosen.json)


if __name__ == "__main__":
    main()
