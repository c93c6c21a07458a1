"""ONNX Runtime: the portable form, one graph that many runtimes read; int8 by its own quantiser."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from dynabert.engines import UNCALIBRATED, Example, Inputs, Int8, Options, completed, example_inputs, needing, quiet
from dynabert.errors import SettingError
from dynabert.processor import int8_overflows

if TYPE_CHECKING:
    import onnx
    import onnx_ir
    import torch
    from transformers import PreTrainedModel

GRAPH = "model.onnx"

ATTENTION_OPSET = 23
"""The first with an operator for attention: one kernel, where earlier opsets spell it out in a dozen nodes."""

_QUANTISED = ["MatMul", "Gemm", "Gather"]  # Gather: the embeddings, most of the bytes of a small size
_NOISY = ("torch.onnx", "onnxscript", "onnx_ir", "root", "transformers")
_SCOPES = "pkg.torch.onnx.name_scopes"


class OnnxruntimeSession:
    """A graph that ONNX Runtime has prepared for this machine."""

    def __init__(self, path: Path, options: Options) -> None:
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        for name, value in options.items():
            if _is_entry(name):
                settings.add_session_config_entry(name, str(value))
            else:
                setattr(settings, name, value)
        self._path = path
        self._session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        self._names = [node.name for node in self._session.get_inputs()]

    @property
    def n_fused(self) -> int | None:
        """Attention operators of the graph, each of which is one kernel. Needs the onnx package."""
        with needing("onnxruntime"):
            import onnx
        graph = onnx.load(self._path, load_external_data=False).graph
        return sum(node.op_type == "Attention" for node in graph.node)

    def __call__(self, inputs: Inputs) -> np.ndarray:
        """Logits in float32, shape (batch, n_labels)."""
        return np.asarray(self._session.run(None, completed(inputs, self._names))[0], dtype=np.float32)


class OnnxruntimeEngine:
    """ONNX: a graph, and beside it a file of weights.

    :param opset: the version of ONNX's operators that graphs are written in.
    """

    version = onnxruntime.__version__

    def __init__(self, opset: int = ATTENTION_OPSET) -> None:
        self.opset = opset

    def write(self, model: "PreTrainedModel", folder: Path, *, dtype: str, int8: Int8 = UNCALIBRATED) -> None:
        """Export by torch.export, and quantise where asked to: int8 finds its ranges as it runs, int8-static before.

        :raises SettingError: int8-static without calibration rows.
        """
        if dtype == "int8-static" and not int8.calibration:
            raise SettingError("int8-static needs calibration rows; give some, a few hundred are enough")
        if dtype == "fp32":
            save_graph(model, folder / GRAPH, opset=self.opset)
            return
        rows = _Rows(int8.calibration, model) if dtype == "int8-static" else None
        with TemporaryDirectory(prefix="dynabert-") as scratch, quiet(*_NOISY):
            save_graph(model, Path(scratch) / GRAPH, opset=self.opset)
            _quantise(Path(scratch) / GRAPH, folder / GRAPH, rows=rows, unquantised=int8.unquantised)

    def open(self, folder: Path, *, dtype: str, n_threads: int) -> OnnxruntimeSession:
        """Read and prepare; a graph can be named instead of its folder."""
        options = self.options(dtype=dtype, n_threads=n_threads)
        return OnnxruntimeSession(folder if folder.is_file() else folder / GRAPH, options)

    def options(self, *, dtype: str, n_threads: int) -> Options:
        """The threads; idle ones that spin would take the processor from whatever else runs.

        The sum of two inputs and its norm stay two nodes: as one, for which ONNX Runtime has a slower kernel, they take
        eight times as long, half of the time of a small size in int8 (version 1.32 on AMD EPYC, docs/LOG.md).
        """
        return {
            "intra_op_num_threads": n_threads,
            "session.intra_op.allow_spinning": "0",
            "optimization.disable_specified_optimizers": "SkipLayerNormFusion",
        }

    def has(self, dtype: str) -> bool:
        """Its types run on every processor."""
        return True

    def example(self, file: str, *, dtype: str, n_threads: int) -> Example:
        """A session with the same options."""
        told = (
            f'options.add_session_config_entry("{name}", "{value}")' if _is_entry(name) else f"options.{name} = {value}"
            for name, value in self.options(dtype=dtype, n_threads=n_threads).items()
        )
        lines = (
            "options = onnxruntime.SessionOptions()",
            *told,
            f'path = f"{{folder}}/{GRAPH if file == "." else file}"',
            'model = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])',
            "logits = model.run(None, inputs)[0]",
        )
        return Example(("onnxruntime>=1.23",), ("import onnxruntime",), lines)


def _is_entry(name: str) -> bool:
    """Whether an option is an entry of the configuration; others are attributes."""
    return "." in name


def _quantise(plain: Path, target: Path, *, rows: "_Rows | None", unquantised: Sequence[int]) -> None:
    """Write a graph in int8, its weights in 7 bits where sums would overflow here.

    :param rows: to find the ranges of activations on; None has them found as the graph runs.
    """
    with needing("onnxruntime"):
        import onnx
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static
    nodes = onnx.load(plain, load_external_data=False).graph.node
    common: dict[str, Any] = {
        "per_channel": True,
        "weight_type": QuantType.QInt8,
        "op_types_to_quantize": _QUANTISED,
        "reduce_range": int8_overflows(),
        "nodes_to_exclude": [node.name for node in nodes if _layer_of(node) in unquantised],
    }
    if rows is None:
        quantize_dynamic(plain, target, **common)
    else:
        quantize_static(plain, target, rows, quant_format=QuantFormat.QDQ, **common)


def graph_of(
    model: "PreTrainedModel", *, opset: int = ATTENTION_OPSET, as_they_are: bool = False
) -> "torch.onnx.ONNXProgram":
    """A model as an ONNX graph with any number of rows and tokens; its one output is called logits.

    :param as_they_are: keep all weights so. Otherwise the exporter puts what it can work out of a weight, transposed or
        a part of it, in its place: alone that is as good, but two graphs then have no weight in common.
    """
    import torch

    with quiet(*_NOISY), needing("onnxruntime"):
        from onnxscript import optimizer  # torch.onnx.export needs the package, and would not say so in one line
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
            opset_version=opset,
            verbose=False,
            optimize=not as_they_are,
        )
        assert program is not None
        if as_they_are:
            names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
            optimizer.optimize_ir(program.model, should_fold=partial(_unless_of, names))
    return program


def _unless_of(names: set[str], node: "onnx_ir.Node") -> bool | None:
    """That a node must not be worked out, where it takes a weight of those names; None leaves it to the exporter."""
    return False if any(value is not None and value.name in names for value in node.inputs) else None


def save_graph(
    model: "PreTrainedModel", path: Path, *, opset: int = ATTENTION_OPSET, as_they_are: bool = False
) -> None:
    """Write a model as an ONNX graph, its weights in one file beside it; for the parameters see `graph_of`."""
    program = graph_of(model, opset=opset, as_they_are=as_they_are)
    with quiet(*_NOISY):
        program.save(path, external_data=True)


def _layer_of(node: "onnx.NodeProto") -> int | None:
    """The executed layer that a node of a graph is part of."""
    for entry in node.metadata_props:
        if entry.key == _SCOPES:
            for scope in json.loads(entry.value.replace("'", '"')):
                head, _, number = scope.rpartition(".layer.")
                if head and number.isdigit():
                    return int(number)
    return None


class _Rows:
    """Calibration rows, one after the other: a ``CalibrationDataReader`` by what it does."""

    def __init__(self, rows: Sequence[Inputs], model: "PreTrainedModel") -> None:
        names = list(example_inputs(model))
        self._rows = iter([completed(row, names) for row in rows])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next row, None after the last."""
        return next(self._rows, None)
