"""How much memory a process needs to run a written model. Its own process, for memory that was used once is not given
back for the next measurement. It runs a tiny model first, so that what the engine loads at its first use, whatever the
model, is there before the count begins.

    python -m dynabert.engines.footprint FOLDER TINY ENGINE DTYPE THREADS BATCH SEQ      prints bytes
"""

import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from dynabert.engines import Engine, Int8, Session, engine_of, example_inputs
from dynabert.errors import ModelFileError
from dynabert.memory import peak_memory

_TINY_SHAPE = (1, 8)


def footprint(folder: Path, *, engine: str, dtype: str, n_threads: int, shape: tuple[int, int]) -> int:
    """Most resident memory that opening and running a model adds to a process in which the engine is loaded, in bytes.

    :param folder: that the engine wrote.
    :param shape: batch and seq of the input.
    :raises ModelFileError: the process failed.
    """
    with TemporaryDirectory(prefix="dynabert-") as tiny:
        for name, content in _tiny_files(engine, dtype).items():
            path = Path(tiny) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        arguments = map(str, (folder, tiny, engine, dtype, n_threads, *shape))
        command = [sys.executable, "-W", "ignore", "-m", "dynabert.engines.footprint", *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ModelFileError(f"{folder} cannot be run by {engine} in a process of its own: {last:.200}")
    return int(done.stdout.split()[-1])


@cache
def _tiny_files(engine: str, dtype: str) -> dict[str, bytes]:
    """What the engine writes for a model of a hundred kilobytes: contents by name, so that nothing stays on the disk.

    The process that asks writes it: one that has written a model has memory left over, and would seem to need less.
    """
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    with torch.random.fork_rng(devices=[]):  # whoever measures draws what it would have drawn
        model = BertForSequenceClassification(config).eval()
    with TemporaryDirectory(prefix="dynabert-") as scratch:
        folder = Path(scratch)
        engine_of(engine, dtype).write(model, folder, dtype=dtype, int8=Int8([example_inputs(model)]))
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _run(engine: Engine, folder: Path, *, dtype: str, n_threads: int, shape: tuple[int, int]) -> Session:
    session = engine.open(folder, dtype=dtype, n_threads=n_threads)
    ids = np.full(shape, 5, dtype=np.int64)
    session({"input_ids": ids, "attention_mask": np.ones_like(ids)})
    return session


def main() -> None:
    """Measure in this process, and print."""
    folder, tiny, (name, dtype) = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:5]
    n_threads, batch, seq = map(int, sys.argv[5:])
    engine = engine_of(name, dtype)
    sessions = [_run(engine, tiny, dtype=dtype, n_threads=n_threads, shape=_TINY_SHAPE)]
    before = peak_memory()()
    peak = peak_memory()
    sessions.append(_run(engine, folder, dtype=dtype, n_threads=n_threads, shape=(batch, seq)))
    sys.stdout.write(f"{max(0, peak() - before)}\n")


if __name__ == "__main__":
    main()
