"""What an engine computes from a file is what PyTorch computes from the extracted model: logits within 1e-4."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny_batch, tiny_model

from dynabert.elastic import ElasticModel
from dynabert.engines import engine_of
from dynabert.subnet import Subnet

TOLERANCE = 1e-4
SHAPES = ((5, 11), (1, 3), (3, 31))  # none of them the one that the model is traced with


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("engine", ["openvino", "onnxruntime", "torch"])
def test_exported_equals_extracted(family: str, engine: str, tmp_path: Path) -> None:
    small = ElasticModel(tiny_model(family)).extract(Subnet(0.5, 0.5)).eval()
    runs = engine_of(engine, "fp32")
    runs.write(small, tmp_path, dtype="fp32")
    session = runs.open(tmp_path, dtype="fp32", n_threads=1)
    for batch, seq in SHAPES:
        inputs = tiny_batch(seed=seq, batch=batch, seq=seq).inputs
        with torch.inference_mode():
            expected = small(**inputs).logits.numpy()
        logits = session({name: rows.numpy() for name, rows in inputs.items()})
        assert logits.dtype == np.float32 and np.ptp(expected) > 0.1
        np.testing.assert_allclose(logits, expected, atol=TOLERANCE, rtol=0)
