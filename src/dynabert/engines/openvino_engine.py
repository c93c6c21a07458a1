"""OpenVINO, the fastest on CPUs of those measured (`benchmarks/inference.py`); int8 by NNCF."""

import io
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import openvino

from dynabert.engines import UNCALIBRATED, Example, Inputs, Int8, Options, completed, example_inputs, needing, quiet
from dynabert.errors import SettingError
from dynabert.processor import int8_overflows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GRAPH = "openvino_model.xml"

_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
# Without a hint OpenVINO computes in bf16 wherever the processor can, silently.


class OpenvinoSession:
    """A graph that OpenVINO has compiled for this machine."""

    def __init__(self, graph: openvino.Model, options: Options) -> None:
        self._asked = Counter(op.get_type_name() for op in graph.get_ops())["ScaledDotProductAttention"]
        self._compiled = openvino.Core().compile_model(graph, "CPU", options)
        self._names = [node.any_name for node in self._compiled.inputs]
        self._request = self._compiled.create_infer_request()

    @property
    def n_fused(self) -> int | None:
        """Attention in one kernel; one that is not fused has its softmax as a node of its own."""
        alone = sum(_kind(op) == "Softmax" for op in self._compiled.get_runtime_model().get_ops())
        return max(0, self._asked - alone)

    def __call__(self, inputs: Inputs) -> np.ndarray:
        """Logits in float32, shape (batch, n_labels)."""
        results = self._request.infer(completed(inputs, self._names), share_inputs=True)
        return np.array(results[0], dtype=np.float32)


def _kind(op: openvino.Node) -> str:
    kind = op.get_rt_info()["layerType"]
    return str(getattr(kind, "value", kind))


class OpenvinoEngine:
    """Intermediate representation of OpenVINO: one graph file, one file of weights."""

    version = openvino.__version__.split("-")[0]

    def write(self, model: "PreTrainedModel", folder: Path, *, dtype: str, int8: Int8 = UNCALIBRATED) -> None:
        """Trace, quantise where asked to, and write; fp32 and bf16 are the same files, the type is chosen at opening.

        :raises SettingError: int8 without calibration rows, or without NNCF.
        """
        import torch

        example = {name: torch.from_numpy(array) for name, array in example_inputs(model).items()}
        with _silent():
            graph = openvino.convert_model(model, example_input=example)
            if dtype == "int8":
                graph = _quantised(graph, int8)
            openvino.save_model(graph, folder / GRAPH, compress_to_fp16=False)

    def open(self, folder: Path, *, dtype: str, n_threads: int) -> OpenvinoSession:
        """Read and compile."""
        options = self.options(dtype=dtype, n_threads=n_threads)
        return OpenvinoSession(openvino.Core().read_model(folder / GRAPH), options)

    def options(self, *, dtype: str, n_threads: int) -> Options:
        """The type of the products, the threads, and that one call has them all."""
        return {"INFERENCE_PRECISION_HINT": _HINTS[dtype], "INFERENCE_NUM_THREADS": n_threads, "NUM_STREAMS": 1}

    def has(self, dtype: str) -> bool:
        """Without instructions for bf16 OpenVINO computes in fp32, silently."""
        return dtype != "bf16" or "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")

    def example(self, file: str, *, dtype: str, n_threads: int) -> Example:
        """Compile the graph with the same options."""
        lines = (
            f"options = {self.options(dtype=dtype, n_threads=n_threads)}".replace("'", '"'),
            f'model = openvino.Core().compile_model(f"{{folder}}/{GRAPH}", "CPU", options)',
            "logits = model(inputs)[0]",
        )
        return Example(("openvino",), ("import openvino",), lines)


def _quantised(graph: openvino.Model, int8: Int8) -> openvino.Model:
    if not int8.calibration:
        raise SettingError("int8 of openvino needs calibration rows; give some, a few hundred are enough")
    with needing("openvino"):
        import nncf
    names = [node.any_name for node in graph.inputs]
    rows = [completed(inputs, names) for inputs in int8.calibration]
    layers = "|".join(map(str, int8.unquantised))
    fix = nncf.OverflowFix.ENABLE if int8_overflows() else None  # weights of 7 bits
    spared = nncf.IgnoredScope(patterns=[rf".*\.layer\.({layers})\..*"], validate=False) if layers else None
    return nncf.quantize(
        graph,
        nncf.Dataset(rows),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(rows),
        ignored_scope=spared,
        advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=fix),
    )


@contextmanager
def _silent() -> Iterator[None]:
    """Without the tracer's warnings, which concern branches that an encoder does not take, and without NNCF's bars."""
    with quiet("nncf", "transformers"), redirect_stdout(io.StringIO()):
        yield
