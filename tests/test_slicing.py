"""The one rule of what is active, in memory and in a file."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from dynabert import weights
from dynabert.errors import ModelFileError
from dynabert.slicing import leading, leading_ranges
from dynabert.weights import open_weights


def test_ranges_are_the_first_entries_of_every_block():
    assert leading_ranges(8, 3) == (slice(0, 3),)
    assert leading_ranges(12, 2, parts=3) == (slice(0, 2), slice(4, 6), slice(8, 10))
    assert leading_ranges(12, 4, parts=3) == (slice(0, 4), slice(4, 8), slice(8, 12))
    for length, size, parts in ((8, 0, 1), (8, 9, 1), (9, 2, 2), (8, 5, 2), (8, -1, 1)):
        with pytest.raises(ValueError, match="cannot keep"):
            leading_ranges(length, size, parts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("chunk_bytes", [1, 100, 2**22])
def test_what_is_read_by_ranges_is_what_a_view_slices(dtype, chunk_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "_CHUNK_BYTES", chunk_bytes)
    kept = {
        "matrix": torch.randn(12, 10).to(dtype),
        "vector": torch.randn(12).to(dtype),
        "cube": torch.randn(4, 3, 2).to(dtype),
        "number": torch.randn(()).to(dtype),
        "nothing": torch.empty(0, 3, dtype=dtype),
    }
    save_file({"before": torch.ones(3, dtype=torch.uint8), **kept}, tmp_path / "weights.safetensors")
    with open_weights([tmp_path / "weights.safetensors"], "bert") as stored:
        for name, tensor in kept.items():
            whole = stored[name].read()
            assert torch.equal(whole, tensor.float()) and whole.shape == tensor.shape
        for parts in (1, 2, 3):
            rows, columns = leading_ranges(12, 3, parts), leading_ranges(10, 4, 2)
            wanted = replace(stored["matrix"], ranges=(rows, columns))
            expected = leading(leading(kept["matrix"], 3, 0, parts), 4, 1, 2)
            assert wanted.shape == expected.shape and torch.equal(wanted.read(), expected.float())
            wanted = replace(stored["matrix"], ranges=(rows,))
            assert torch.equal(wanted.read(), leading(kept["matrix"], 3, 0, parts).float())
            wanted = replace(stored["vector"], ranges=(rows,))
            assert torch.equal(wanted.read(), leading(kept["vector"], 3, 0, parts).float())


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"matrix": torch.randn(12, 10)}, path)
    with open_weights([path], "bert") as stored:
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - 4)
        with pytest.raises(ModelFileError, match="ends within 'matrix'"):
            stored["matrix"].read()
