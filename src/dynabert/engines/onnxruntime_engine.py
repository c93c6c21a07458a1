"""ONNX Runtime: the portable form, one graph that many runtimes read; int8 by its own quantiser."""

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from dynabert.engines import Inputs, completed, example_inputs, quiet
from dynabert.errors import SettingError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GRAPH = "model.onnx"

_OPSET = 23  # the first with an operator for attention: one kernel, where earlier opsets spell it out in ten nodes
_QUANTISED = ["MatMul", "Gemm", "Gather"]  # Gather: the embeddings, most of the bytes of a small size
_NOISY = ("torch.onnx", "onnxscript", "onnx_ir", "root", "transformers")
_SCOPES = "pkg.torch.onnx.name_scopes"


class OnnxruntimeSession:
    """A graph that ONNX Runtime has prepared for this machine."""

    def __init__(self, path: Path, *, n_threads: int) -> None:
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads, settings.log_severity_level = n_threads, 3
        # Idle threads that spin take the processor from whatever else runs.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        self._names = [node.name for node in self._session.get_inputs()]
        graph = onnx.load(path, load_external_data=False).graph
        self.n_fused: int | None = sum(node.op_type == "Attention" for node in graph.node)

    def __call__(self, inputs: Inputs) -> np.ndarray:
        """Logits in float32, shape (batch, n_labels)."""
        return np.asarray(self._session.run(None, completed(inputs, self._names))[0], dtype=np.float32)


class OnnxruntimeEngine:
    """ONNX: a graph, and beside it a file of weights."""

    version = onnxruntime.__version__

    def write(
        self,
        model: "PreTrainedModel",
        folder: Path,
        *,
        dtype: str,
        calibration: Sequence[Inputs] = (),
        unquantised: Sequence[int] = (),
    ) -> None:
        """Export by torch.export, and quantise where asked to: int8 finds its ranges as it runs, int8-static before.

        :raises SettingError: int8-static without calibration rows.
        """
        if dtype == "fp32":
            save_graph(model, folder / GRAPH)
            return
        with TemporaryDirectory(prefix="dynabert-") as scratch, quiet(*_NOISY):
            plain = Path(scratch) / GRAPH
            save_graph(model, plain)
            spared = [
                node.name
                for node in onnx.load(plain, load_external_data=False).graph.node
                if _layer_of(node) in unquantised
            ]
            common: dict[str, Any] = {
                "per_channel": True,
                "weight_type": QuantType.QInt8,
                "op_types_to_quantize": _QUANTISED,
                "nodes_to_exclude": spared,
            }
            if dtype == "int8":
                quantize_dynamic(plain, folder / GRAPH, **common)
                return
            if not calibration:
                raise SettingError("int8-static needs calibration rows; give some, a few hundred are enough")
            quantize_static(plain, folder / GRAPH, _Rows(calibration, model), quant_format=QuantFormat.QDQ, **common)

    def open(self, folder: Path, *, dtype: str, n_threads: int) -> OnnxruntimeSession:
        """Read and prepare; a graph can be named instead of its folder."""
        return OnnxruntimeSession(folder if folder.is_file() else folder / GRAPH, n_threads=n_threads)


def graph_of(model: "PreTrainedModel") -> torch.onnx.ONNXProgram:
    """A model as an ONNX graph with any number of rows and tokens; its one output is called logits."""
    inputs = {name: torch.from_numpy(array) for name, array in example_inputs(model).items()}
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("seq")}
    with quiet(*_NOISY):
        program = torch.onnx.export(
            model,
            (),
            kwargs=inputs,
            dynamo=True,
            dynamic_shapes=dict.fromkeys(inputs, axes),
            output_names=["logits"],
            opset_version=_OPSET,
            verbose=False,
        )
    assert program is not None
    return program


def save_graph(model: "PreTrainedModel", path: Path) -> None:
    """Write a model as an ONNX graph, its weights in one file beside it."""
    program = graph_of(model)
    with quiet(*_NOISY):
        program.save(path, external_data=True)


def _layer_of(node: onnx.NodeProto) -> int | None:
    """The executed layer that a node of a graph is part of."""
    for entry in node.metadata_props:
        if entry.key == _SCOPES:
            for scope in json.loads(entry.value.replace("'", '"')):
                head, _, number = scope.rpartition(".layer.")
                if head and number.isdigit():
                    return int(number)
    return None


class _Rows(CalibrationDataReader):
    """Calibration rows, one after the other."""

    def __init__(self, rows: Sequence[Inputs], model: "PreTrainedModel") -> None:
        names = list(example_inputs(model))
        self._rows = iter([completed(row, names) for row in rows])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next row, None after the last."""
        return next(self._rows, None)
