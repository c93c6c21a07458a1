"""Several sizes of one network as ONNX graphs that share one file of weights.

Each graph is that of a view: it has the shared weights as its inputs and slices them, which a runtime does once, when
it loads the graph. What is shared is cut before: of each layer the most heads and neurons that any of the sizes keeps.
So the weights of nested sizes together are those of the largest of them, stored once.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, BinaryIO

import onnx
import torch
from torch import nn

from dynabert.elastic import ElasticLinear, ElasticModel
from dynabert.engines.onnxruntime_engine import GRAPH, save_graph
from dynabert.folders import file_name_of
from dynabert.subnet import LayerSlice, Subnet

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WEIGHTS = "weights.data"

_ALIGNMENT = 4096  # of a weight in the file, so that it can be mapped into memory


def write_sharing(elastic: ElasticModel, subnets: Sequence[Subnet], folder: Path) -> tuple[str, ...]:
    """Write sizes that share their weights.

    :param elastic: the network, on the CPU.
    :param folder: which exists; it gets a graph for each size, and `WEIGHTS`.
    :return: names of the graphs, in the order of the sizes.
    """
    files = tuple(f"{file_name_of(subnet.name)}.onnx" for subnet in subnets)
    places: dict[bytes, tuple[int, int]] = {}
    with (folder / WEIGHTS).open("wb") as weights:
        for file, view in zip(files, _views(elastic, [elastic.slices(subnet) for subnet in subnets]), strict=True):
            with TemporaryDirectory(prefix="dynabert-") as scratch:
                save_graph(view, Path(scratch) / GRAPH, as_they_are=True)
                graph = onnx.load(Path(scratch) / GRAPH, load_external_data=False)
                for tensor in graph.graph.initializer:
                    _move(tensor, Path(scratch), weights, places)
            onnx.save(graph, folder / file)
    return files


def _views(elastic: ElasticModel, sizes: Sequence[tuple[LayerSlice, ...]]) -> "Iterator[PreTrainedModel]":
    """Views in evaluation mode, around one copy of the part of the weights that any of them uses."""
    cut: dict[int, tuple[nn.Parameter, nn.Parameter | None]] = {}
    for module in elastic.make_view(_union(sizes)).modules():
        if isinstance(module, ElasticLinear):
            weight, bias = module.active()
            cut[id(module.weight)] = _own(weight), None if bias is None else _own(bias)

    def linear(weight: nn.Parameter, bias: nn.Parameter | None, *, n_out: int, n_in: int, parts: int) -> nn.Module:
        return ElasticLinear(*cut[id(weight)], n_out=n_out, n_in=n_in, parts=parts)

    for slices in sizes:
        yield elastic.make_view(slices, linear=linear).eval()


def _own(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().clone(memory_format=torch.contiguous_format))


def _union(sizes: Iterable[tuple[LayerSlice, ...]]) -> tuple[LayerSlice, ...]:
    """Every layer that any of some sizes keeps, with the most heads and the most neurons that any keeps of it."""
    most: dict[int, LayerSlice] = {}
    for slices in sizes:
        for part in slices:
            other = most.get(part.layer, part)
            n_heads, n_neurons = max(part.n_heads, other.n_heads), max(part.n_neurons, other.n_neurons)
            most[part.layer] = LayerSlice(part.layer, n_heads, n_neurons)
    return tuple(most[layer] for layer in sorted(most))


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
