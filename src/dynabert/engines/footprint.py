"""How much memory a process needs to run a written model. Its own process, for memory that was used once is not given
back for the next measurement.

    python -m dynabert.engines.footprint FOLDER ENGINE DTYPE THREADS BATCH SEQ      prints bytes
"""

import subprocess
import sys
from pathlib import Path

import numpy as np

from dynabert.engines import engine_of
from dynabert.errors import ModelFileError
from dynabert.memory import peak_memory


def footprint(folder: Path, *, engine: str, dtype: str, n_threads: int, shape: tuple[int, int]) -> int:
    """Most resident memory that opening and running a model adds to a new process, in bytes.

    :param folder: that the engine wrote.
    :param shape: batch and seq of the input.
    :raises ModelFileError: the process failed.
    """
    arguments = [str(folder), engine, dtype, str(n_threads), *map(str, shape)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "dynabert.engines.footprint", *arguments], capture_output=True, text=True
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ModelFileError(f"{folder} cannot be run by {engine} in a process of its own: {last:.200}")
    return int(done.stdout.split()[-1])


def main() -> None:
    """Measure in this process, and print."""
    folder, name, dtype = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    n_threads, batch, seq = map(int, sys.argv[4:])
    engine = engine_of(name, dtype)
    before = peak_memory()()
    peak = peak_memory()
    session = engine.open(folder, dtype=dtype, n_threads=n_threads)
    ids = np.full((batch, seq), 5, dtype=np.int64)
    session({"input_ids": ids, "attention_mask": np.ones_like(ids)})
    sys.stdout.write(f"{max(0, peak() - before)}\n")


if __name__ == "__main__":
    main()
