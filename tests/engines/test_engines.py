"""Every engine writes and runs a small model; attention is fused; int8 stays near; missing things are named."""

import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny_batch, tiny_model
from transformers import PreTrainedModel

from dynabert.batches import Batches, Encoded
from dynabert.deployed import calibration_of, measure_deployed
from dynabert.elastic import ElasticModel
from dynabert.engines import Int8, completed, computing_engine, engine_here, engine_of, input_names
from dynabert.engines.footprint import footprint
from dynabert.engines.torch_engine import TorchSession
from dynabert.errors import ModelFileError, SettingError
from dynabert.export import Checks, ExportSettings, export
from dynabert.processor import int8_overflows
from dynabert.subnet import Subnet, SubnetGrid
from dynabert.sweep import LatencySettings
from dynabert.tasks import TASKS

ROWS = tiny_batch(seed=3, batch=40, seq=20)
INPUTS = {name: rows.numpy() for name, rows in ROWS.inputs.items()}
CALIBRATION = calibration_of([ROWS])


@pytest.fixture(scope="module")
def small() -> PreTrainedModel:
    return ElasticModel(tiny_model("bert")).extract(Subnet(0.5, 0.5)).eval()


@pytest.fixture(scope="module")
def expected(small: PreTrainedModel) -> np.ndarray:
    with torch.inference_mode():
        return small(**ROWS.inputs).logits.numpy()


Writer = Callable[..., Path]


@pytest.fixture(scope="module")
def written(small: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Writer:
    """The folder of `small` in a form; each form is written once, for quantising takes seconds."""

    @cache
    def write(name: str, dtype: str, unquantised: tuple[int, ...], overflows: bool) -> Path:
        folder = tmp_path_factory.mktemp(f"{name}-{dtype}")
        settings = {"int8": Int8(CALIBRATION, unquantised)} if dtype.startswith("int8") else {}
        with pytest.MonkeyPatch.context() as patch:
            if settings:
                patch.setattr(f"dynabert.engines.{name}_engine.int8_overflows", lambda: overflows)
            engine_of(name, dtype).write(small, folder, dtype=dtype, **settings)
        return folder

    def form(name: str, dtype: str, *, unquantised: tuple[int, ...] = (), overflows: bool = int8_overflows()) -> Path:
        return write(name, dtype, unquantised, overflows)

    return form


def logits_of(folder: Path, name: str, dtype: str) -> np.ndarray:
    return engine_of(name, dtype).open(folder, dtype=dtype, n_threads=1)(INPUTS)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("torch", "bf16"),
        ("openvino", "bf16"),
        ("openvino", "int8"),
        ("onnxruntime", "int8"),
        ("onnxruntime", "int8-static"),
    ],
)
def test_low_precision_is_near_but_not_equal(name: str, dtype: str, written: Writer, expected: np.ndarray) -> None:
    if name == "openvino" and not engine_of(name, dtype).has(dtype):
        pytest.skip(f"openvino computes {dtype} in fp32 on this processor")
    logits = logits_of(written(name, dtype), name, dtype)
    error = np.abs(logits - expected).max() / np.ptp(expected)
    assert 1e-5 < error < 0.15
    assert (logits.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.8


@pytest.mark.parametrize(("name", "dtype"), [("openvino", "int8"), ("onnxruntime", "int8")])
def test_layers_that_are_left_unquantised_are_exact(
    name: str, dtype: str, written: Writer, expected: np.ndarray
) -> None:
    errors = []
    for unquantised in ((), (1,), (0, 1)):
        logits = logits_of(written(name, dtype, unquantised=unquantised), name, dtype)
        errors.append(float(np.square(logits - expected).mean()))
    assert errors[2] < min(errors[:2]) and len(set(errors)) == 3  # the head is quantised still


def int8_weights(name: str, folder: Path) -> list[np.ndarray]:
    """The matrices of a written model that are in int8."""
    if name == "openvino":
        import openvino

        graph = openvino.Core().read_model(folder / "openvino_model.xml")
        constants = [op for op in graph.get_ops() if op.get_type_name() == "Constant"]
        return [op.data for op in constants if op.data.dtype == np.int8 and op.data.ndim == 2]
    import onnx

    tensors = map(onnx.numpy_helper.to_array, onnx.load(folder / "model.onnx").graph.initializer)
    return [tensor for tensor in tensors if tensor.dtype == np.int8 and tensor.ndim == 2]


@pytest.mark.parametrize(
    ("name", "dtype"), [("openvino", "int8"), ("onnxruntime", "int8"), ("onnxruntime", "int8-static")]
)
@pytest.mark.parametrize("overflows", [False, True])
def test_weights_have_a_bit_less_where_sums_would_overflow(
    name: str, dtype: str, overflows: bool, written: Writer
) -> None:
    of_maps = {32, 64}  # heads and neurons, hidden; embeddings, which are looked up, have other numbers of rows
    matrices = int8_weights(name, written(name, dtype, overflows=overflows))
    products = [weights for weights in matrices if of_maps.issuperset(weights.shape)]
    assert len(products) >= 2 * 6, "all linear maps"
    largest = [int(np.abs(weights.astype(int)).max()) for weights in products]
    assert all(number <= 64 for number in largest) if overflows else max(largest) > 100


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_attention_of_every_layer_is_one_kernel(name: str, written: Writer) -> None:
    assert engine_of(name, "fp32").open(written(name, "fp32"), dtype="fp32", n_threads=1).n_fused == 2


def test_eager_attention_is_seen_not_to_be_fused(tmp_path: Path) -> None:
    engine = engine_of("onnxruntime", "fp32")
    engine.write(tiny_model("bert", attention="eager", n_layers=1), tmp_path, dtype="fp32")
    assert engine.open(tmp_path, dtype="fp32", n_threads=1).n_fused == 0


@pytest.mark.parametrize("told", [True, False])
def test_onnx_runtime_leaves_sums_and_norms_apart_if_it_is_told_to(told: bool, written: Writer, tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    engine = engine_of("onnxruntime", "fp32")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    for name, value in engine.options(dtype="fp32", n_threads=1).items() if told else ():
        if "." in name:
            options.add_session_config_entry(name, str(value))
    graph = written("onnxruntime", "fp32") / "model.onnx"
    onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    kinds = {node.op_type for node in onnx.load(tmp_path / "optimised.onnx", load_external_data=False).graph.node}
    assert ("SkipLayerNormalization" in kinds) is not told and "LayerNormalization" in kinds


@pytest.mark.slow
def test_compiled_torch_agrees(written: Writer, expected: np.ndarray) -> None:
    logits = logits_of(written("torch-compile", "fp32"), "torch-compile", "fp32")
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_every_size_is_really_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All sizes are one class, of which TorchDynamo by itself compiles no more than eight."""
    compiled: list[str] = []

    def backend(graph: torch.fx.GraphModule, example: object) -> object:
        compiled.append(size)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    elastic, engine = (
        ElasticModel(tiny_model("bert", n_layers=1), SubnetGrid(depths=(1,))),
        engine_of("torch-compile", "fp32"),
    )
    shares = (1, 0.75, 0.5, 0.25)
    sizes = [Subnet(heads=heads, neurons=neurons) for heads in shares[:3] for neurons in shares[:3]]
    try:
        for subnet in sizes:
            size = subnet.name
            (tmp_path / size).mkdir()
            engine.write(elastic.extract(subnet).eval(), tmp_path / size, dtype="fp32")
            session = engine.open(tmp_path / size, dtype="fp32", n_threads=1)
            for batch in (1, 3):
                inputs = tiny_batch(batch=batch).inputs
                logits = session({name: rows.numpy() for name, rows in inputs.items()})
                np.testing.assert_allclose(logits, elastic.at(subnet)(**inputs).logits.detach().numpy(), atol=1e-4)
    finally:
        torch.compiler.reset()
    assert set(compiled) == {subnet.name for subnet in sizes}


@pytest.mark.parametrize(("name", "most"), [("onnxruntime", 5e6), ("openvino", 25e6), ("torch", 5e6)])
def test_memory_of_a_file_is_that_on_top_of_the_engine(name: str, most: float, written: Writer, tmp_path: Path) -> None:
    settings = {"engine": name, "dtype": "fp32", "n_threads": 1, "shape": (1, 8)}
    found = footprint(written(name, "fp32"), **settings)
    assert 10**5 < found < most, "the libraries of each of them are larger"
    with pytest.raises(ModelFileError, match=f"cannot be run by {name} in a process of its own"):
        footprint(tmp_path / "nowhere", **settings)


def test_types_of_tokens_are_taken_where_there_are_some(small: PreTrainedModel) -> None:
    assert input_names(small) == ("input_ids", "attention_mask", "token_type_ids")
    ids = np.ones((2, 3), dtype=np.int64)
    given = completed({"input_ids": ids, "attention_mask": ids}, input_names(small))
    assert not given["token_type_ids"].any() and given["token_type_ids"].shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "dtype", "message"),
    [
        ("abacus", "fp32", "unknown engine 'abacus'; known: openvino, onnxruntime, torch, torch-compile"),
        ("onnxruntime", "bf16", "unknown dtype of onnxruntime 'bf16'; known: fp32, int8, int8-static"),
    ],
)
def test_unknown_ones_are_refused(name: str, dtype: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        engine_of(name, dtype)


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "dynabert.engines.openvino_engine", raising=False)
    with pytest.raises(SettingError, match=r"engine openvino needs openvino; run: pip install 'dynabert\[openvino\]'"):
        engine_of("openvino", "fp32")


@pytest.mark.parametrize(
    ("name", "dtype", "package"), [("openvino", "int8", "nncf"), ("onnxruntime", "fp32", "onnxscript")]
)
def test_what_writing_alone_needs_is_named_too(
    name: str, dtype: str, package: str, small: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(name, dtype)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SettingError, match=rf"engine {name} needs {package}; run: pip install 'dynabert\[{name}\]'"):
        engine.write(small, tmp_path, dtype=dtype, int8=Int8(CALIBRATION))


@pytest.mark.parametrize(("name", "dtype"), [("openvino", "int8"), ("onnxruntime", "int8-static")])
def test_static_int8_without_rows_is_refused(name: str, dtype: str, small: PreTrainedModel, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="needs calibration rows"):
        engine_of(name, dtype).write(small, tmp_path, dtype=dtype)


@pytest.mark.parametrize(("has", "warned"), [(False, True), (True, False)])
def test_a_type_that_the_processor_lacks_is_said(
    has: bool, warned: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("dynabert.engines.torch_engine.has_bf16", lambda device: has)
    assert engine_here("torch", "bf16").has("bf16") == has and ("no instructions for bf16" in caplog.text) == warned
    caplog.clear()
    assert engine_here("torch", "fp32").has("fp32") and not caplog.text


def test_openvino_has_what_it_computes_in(written: Writer) -> None:
    exact, low = (logits_of(written("openvino", dtype), "openvino", dtype) for dtype in ("fp32", "bf16"))
    assert np.allclose(exact, low, atol=1e-5) != engine_of("openvino", "bf16").has("bf16")


def test_calibration_rows_are_spread_over_all_lengths():
    lengths = [length for length in range(40, 0, -1) for _ in range(10)]  # longest first, as batches come
    rows = Encoded(
        [np.full(length, 5, np.int32) for length in lengths], None, np.zeros(len(lengths), np.int64), np.arange(400)
    )
    chosen = calibration_of(Batches(rows, batch_size=16, seed=0, pad_id=0, shuffle=False), n=100)
    seen = [row["input_ids"].shape[1] for row in chosen]
    assert len(seen) == 100 and max(seen) == 40 and min(seen) == 1
    assert np.mean(seen) == pytest.approx(np.mean(lengths), abs=1)


def test_threads_of_the_process_are_as_before_a_call():
    before = torch.get_num_threads()
    session = TorchSession(tiny_model("bert"), n_threads=before + 1)
    session({name: rows.numpy() for name, rows in ROWS.inputs.items()})
    assert torch.get_num_threads() == before


def test_a_type_that_the_processor_lacks_is_neither_measured_nor_exported(monkeypatch, tmp_path):
    monkeypatch.setattr("dynabert.engines.torch_engine.has_bf16", lambda device: False)
    said = "no instructions for bf16, so what torch computes in it cannot"
    elastic, task = ElasticModel(tiny_model("bert")), TASKS["mnli"]
    latency = LatencySettings(engine="torch", dtype="bf16", seq=(8,))
    with pytest.raises(SettingError, match=said):
        measure_deployed(elastic, [ROWS], task=task, settings=latency)
    settings = ExportSettings("torch", "bf16", shape=(1, 8))
    with pytest.raises(SettingError, match=said):
        export(elastic, Subnet(), tmp_path / "out", checks=Checks(task, (ROWS,), (ROWS,)), settings=settings)
    assert not (tmp_path / "out").exists() and computing_engine("torch", "fp32").has("fp32")
