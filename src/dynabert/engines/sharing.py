"""Several sizes of one network as ONNX graphs that share one file of weights.

Each graph is that of a view: it has the full weights as its inputs and slices them, which a runtime does once, when it
loads the graph. So the weights of all sizes together are those of the largest, stored once.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, BinaryIO

import onnx

from dynabert.engines.onnxruntime_engine import GRAPH, save_graph

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WEIGHTS = "weights.data"

_ALIGNMENT = 4096  # of a weight in the file, so that it can be mapped into memory


def write_sharing(views: "Mapping[str, PreTrainedModel]", folder: Path) -> None:
    """Write views that share their weights.

    :param views: by name, on the CPU, in evaluation mode.
    :param folder: which exists; it gets a graph NAME.onnx for each of them, and `WEIGHTS`.
    """
    places: dict[bytes, tuple[int, int]] = {}
    with (folder / WEIGHTS).open("wb") as weights:
        for name, view in views.items():
            with TemporaryDirectory(prefix="dynabert-") as scratch:
                save_graph(view, Path(scratch) / GRAPH)
                graph = onnx.load(Path(scratch) / GRAPH, load_external_data=False)
                for tensor in graph.graph.initializer:
                    _move(tensor, Path(scratch), weights, places)
            onnx.save(graph, folder / f"{name}.onnx")


def _move(tensor: onnx.TensorProto, source: Path, weights: BinaryIO, places: dict[bytes, tuple[int, int]]) -> None:
    """Have a tensor lie in the common file; one whose bytes are there already is not written again."""
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return
    at = {entry.key: entry.value for entry in tensor.external_data}
    with (source / at["location"]).open("rb") as file:
        file.seek(int(at.get("offset", 0)))
        content = file.read(int(at["length"]))
    digest = hashlib.sha256(content).digest()
    if digest not in places:
        weights.write(b"\0" * (-weights.tell() % _ALIGNMENT))
        places[digest] = weights.tell(), len(content)
        weights.write(content)
    offset, length = places[digest]
    del tensor.external_data[:]
    for key, value in (("location", WEIGHTS), ("offset", str(offset)), ("length", str(length))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
