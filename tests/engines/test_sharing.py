"""Sizes that share a file of weights: it holds what any of them keeps and no more; each computes as its view does."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers import tiny_batch, tiny_model

from dynabert import folders
from dynabert.elastic import ElasticModel
from dynabert.engines.onnxruntime_engine import OnnxruntimeEngine
from dynabert.engines.sharing import WEIGHTS, write_sharing
from dynabert.export import Checks, ExportSettings, export_sharing
from dynabert.exported import ExportIndex, open_export
from dynabert.subnet import LayerSlice, Subnet
from dynabert.tasks import TASKS

ROWS = tiny_batch(seed=3, batch=5, seq=11)
INPUTS = {name: rows.numpy() for name, rows in ROWS.inputs.items()}
UNEVEN = (
    Subnet.of_layers(LayerSlice(0, 1, 64), LayerSlice(2, 4, 16)),
    Subnet.of_layers(LayerSlice(1, 1, 16), LayerSlice(2, 1, 48)),
)
UNION = Subnet.of_layers(LayerSlice(0, 1, 64), LayerSlice(1, 1, 16), LayerSlice(2, 4, 48))


@pytest.fixture(scope="module")
def elastic() -> ElasticModel:
    return ElasticModel(tiny_model("bert"))


def stored(graphs: Sequence[Path]) -> int:
    """Bytes of all weights in the common file, those of several graphs once, the gaps between them aside."""
    places = set()
    for path in graphs:
        for tensor in onnx.load(path, load_external_data=False).graph.initializer:
            at = {entry.key: entry.value for entry in tensor.external_data}
            if at:
                assert at["location"] == WEIGHTS
                places.add((int(at["offset"]), int(at["length"])))
    return sum(length for _, length in places)


@pytest.mark.parametrize(
    ("sizes", "union"),
    [
        ((Subnet(0.25, 0.5), Subnet(0.5, 0.5)), Subnet(0.5, 0.5)),
        ((Subnet(0.5, 0.25), Subnet(1, 0.5)), Subnet(1, 0.5)),
        (UNEVEN, UNION),
    ],
    ids=["narrow", "of-all-widths", "uneven"],
)
def test_all_that_a_size_keeps_is_stored_once_and_nothing_else(
    sizes: tuple[Subnet, ...], union: Subnet, elastic: ElasticModel, tmp_path: Path
) -> None:
    before = {name: tensor.clone() for name, tensor in elastic.model.state_dict().items()}
    graphs = [tmp_path / file for file in write_sharing(elastic, sizes, tmp_path)]
    needed = sum(tensor.nbytes for tensor in elastic.extract(union).parameters())
    assert 0.9 * needed < stored(graphs) < needed + 1000  # and the numbers of the positions
    for subnet, graph in zip(sizes, graphs, strict=True):
        with torch.inference_mode():
            expected = elastic.at(subnet)(**ROWS.inputs).logits.numpy()
        session = OnnxruntimeEngine().open(graph, dtype="fp32", n_threads=1)
        np.testing.assert_allclose(session(INPUTS), expected, atol=1e-4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in elastic.model.state_dict().items())


def test_files_of_sizes_with_long_names_have_shorter_ones(
    elastic: ElasticModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "LONGEST_NAME", 20)
    sizes = (*UNEVEN[:1], Subnet(0.25, 0.5), Subnet.of_layers(*UNEVEN[0].slices(elastic.shape), LayerSlice(3, 1, 16)))
    settings = ExportSettings("onnxruntime", "fp32", shape=(1, 8), n_threads=1)
    made = export_sharing(
        elastic, sizes, tmp_path / "x", checks=Checks(TASKS["mnli"], (ROWS,), (ROWS,)), settings=settings
    )
    assert [size.subnet for size in ExportIndex.of(tmp_path / "x").sizes] == [subnet.name for subnet in sizes]
    assert made[1].file == "w0.25-d0.5.onnx" and len({size.file for size in made}) == 3
    assert all(len(size.file.removesuffix(".onnx")) <= 20 for size in made)
    for subnet in sizes:
        expected = elastic.at(subnet)(**ROWS.inputs).logits.detach().numpy()
        np.testing.assert_allclose(open_export(tmp_path / "x", subnet=subnet.name)(INPUTS), expected, atol=1e-4)
