"""What attention costs where it is not one kernel: the part `fusion` of export.py.

ONNX Runtime runs the same network twice: written with ONNX's own operator for attention, and in an older set of
operators, where attention is spelt out. Both take turns. Shape of bert-base, random weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from common import bert_base, median
from inference import SMALL, calibration, inputs_of

from dynabert.deployed import write_subnet
from dynabert.elastic import ElasticModel
from dynabert.engines import Int8, Session
from dynabert.engines.onnxruntime_engine import ATTENTION_OPSET, OnnxruntimeEngine
from dynabert.subnet import Subnet
from dynabert.timing import interleaved

SPELT_OUT_OPSET = 20
SHAPES = ((1, 32), (1, 128), (1, 512), (16, 128))


@contextmanager
def both(elastic: ElasticModel, subnet: Subnet, dtype: str) -> Iterator[dict[int, Session]]:
    """The graph of a size in both sets of operators, written and opened."""
    sessions: dict[int, Session] = {}
    with TemporaryDirectory(prefix="dynabert-") as scratch:
        for opset in (ATTENTION_OPSET, SPELT_OUT_OPSET):
            engine, folder = OnnxruntimeEngine(opset), Path(scratch) / str(opset)
            folder.mkdir()
            write_subnet(engine, elastic, subnet, folder, dtype=dtype, int8=Int8(calibration()))
            sessions[opset] = engine.open(folder, dtype=dtype, n_threads=torch.get_num_threads())
        yield sessions


def fusion(*, quick: bool) -> list[dict[str, Any]]:
    """A row for each size, type, batch and length: milliseconds of both graphs, and their ratio."""
    elastic, rows = bert_base("cpu"), []
    for subnet, dtype in product((SMALL,) if quick else (Subnet(), SMALL), ("fp32", "int8")):
        with both(elastic, subnet, dtype) as sessions:
            for batch, seq in SHAPES[:2] if quick else SHAPES:
                calls = {opset: partial(session, inputs_of(batch, seq)) for opset, session in sessions.items()}
                taken = interleaved(calls, 3 if quick else 9)
                fused, spelt = taken[ATTENTION_OPSET], taken[SPELT_OUT_OPSET]
                rows.append(
                    {
                        "subnet": subnet.name,
                        "dtype": dtype,
                        "batch": batch,
                        "seq": seq,
                        "layers fused": sessions[ATTENTION_OPSET].n_fused,
                        "fused ms": 1e3 * median(fused),
                        "spelt out ms": 1e3 * median(spelt),
                        "spelt out / fused": median(spelt / fused),
                    }
                )
    return rows
