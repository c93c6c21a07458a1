"""Exports appear whole and checked or not at all, say what they are, and predict as the network that they came from."""

import importlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_model
from small_job import write_encoder
from test_measure import batches, encoded

from dynabert.batches import Batches, encode
from dynabert.data import Rows
from dynabert.deployed import measure_deployed
from dynabert.elastic import ElasticModel
from dynabert.engines import engine_of
from dynabert.errors import ModelFileError, SettingError
from dynabert.export import Checks, ExportSettings, _Making, export, export_sharing
from dynabert.exported import ExportIndex, open_export
from dynabert.hub import push_folder
from dynabert.loading import load, load_tokenizer
from dynabert.measure import machine_of, predict
from dynabert.predict import predict_lines
from dynabert.subnet import Subnet
from dynabert.sweep import LatencySettings, Sweep
from dynabert.tasks import TASKS

MNLI = TASKS["mnli"]
SMALL = Subnet(0.5, 0.5)
QUICK = {"shape": (1, 8), "n_threads": 1}


@pytest.fixture(scope="module")
def elastic() -> ElasticModel:
    return ElasticModel(tiny_model("bert"))


@pytest.fixture(scope="module")
def checks(elastic: ElasticModel) -> Checks:
    """Rows whose labels are what the small Subnet says, so that its metric is 1 and any flip costs something."""

    def rows(seed: int) -> tuple:
        drawn = encoded(n=60, seed=seed)
        said = predict(elastic.at(SMALL), batches(drawn)).argmax(axis=1)
        labels = np.empty_like(drawn.labels)
        labels[np.argsort(drawn.ids)] = said
        return tuple(batches(replace(drawn, labels=labels)))

    return Checks(MNLI, rows(1), rows(2))


def test_an_export_says_what_it_is_and_predicts_as_the_subnet(
    elastic: ElasticModel, checks: Checks, tmp_path: Path
) -> None:
    settings = ExportSettings("onnxruntime", "fp32", **QUICK)
    made = export(elastic, SMALL, tmp_path / "deploy", checks=checks, settings=settings)
    assert made.parity.max_difference < 1e-4 and made.parity.same_size == 1 and made.parity.metric == 1
    assert made.n_fused == made.n_layers == 2 and made.unquantised == ()
    assert made.file_bytes == sum(path.stat().st_size for path in (tmp_path / "deploy").glob("model.onnx*"))
    index = ExportIndex.of(tmp_path / "deploy")
    assert index.sizes == (made,) and made.parity.difference_low == made.parity.difference_high == 0
    here = machine_of(elastic.model.device, n_threads=1, engine=f"onnxruntime {made.version}")
    assert index.made.machine == here and index.made.max_metric_drop is None
    assert index.made.options == engine_of("onnxruntime", "fp32").options(dtype="fp32", n_threads=1)
    assert "attention is one operator: 2 of 2." in (tmp_path / "deploy" / "README.md").read_text()
    session = open_export(tmp_path / "deploy")
    for batch in checks.validation:
        logits = session({name: rows.numpy() for name, rows in batch.inputs.items()})
        assert (logits.argmax(axis=1) == batch.labels.numpy()).all()


@pytest.mark.parametrize(("overflows", "bits"), [(False, 8), (True, 7)])
def test_int8_says_its_bits_and_is_doubted_where_they_overflow(
    overflows: bool,
    bits: int,
    elastic: ElasticModel,
    checks: Checks,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name in ("dynabert.export", "dynabert.engines.onnxruntime_engine"):
        monkeypatch.setattr(importlib.import_module(name), "int8_overflows", lambda: overflows)
    settings = ExportSettings("onnxruntime", "int8", max_metric_drop=1, **QUICK)
    export(elastic, SMALL, tmp_path / "deploy", checks=checks, settings=settings)
    assert ExportIndex.of(tmp_path / "deploy").made.weight_bits == bits
    assert f"Weights in {bits} bits" in (tmp_path / "deploy" / "README.md").read_text()
    for here, doubted in ((True, bits == 8), (False, False)):
        caplog.clear()
        monkeypatch.setattr(sys.modules["dynabert.exported"], "int8_overflows", lambda here=here: here)
        open_export(tmp_path / "deploy")
        assert ("can overflow here" in caplog.text) == doubted
    path = tmp_path / "deploy" / "export.json"
    saved = json.loads(path.read_text())
    del saved["made"]["weight_bits"], saved["made"]["machine"]["instructions"]
    path.write_text(json.dumps({**saved, "format_version": 3}))
    assert ExportIndex.of(tmp_path / "deploy").made.weight_bits == 8, "as all were then"


def test_negative_flips_count_rows_that_the_full_network_has_right(elastic: ElasticModel, tmp_path: Path) -> None:
    rows = tuple(batches(encoded(n=60, seed=3)))
    settings = ExportSettings("onnxruntime", "fp32", **QUICK)
    made = export(elastic, SMALL, tmp_path / "deploy", checks=Checks(MNLI, rows, rows), settings=settings)
    full, small = predict(elastic.at(Subnet()), rows).argmax(1), predict(elastic.at(SMALL), rows).argmax(1)
    labels = np.concatenate([batch.labels for batch in rows])[np.argsort(np.concatenate([b.ids for b in rows]))]
    assert made.parity.negative_flips == pytest.approx(np.mean((full == labels) & (small != labels)))
    assert made.parity.agreement == pytest.approx(np.mean(full == small)) and made.parity.negative_flips > 0


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """An int8 that does harm: every quantised layer shifts the logits of the first class."""
    from dynabert.engines import onnxruntime_engine

    write = onnxruntime_engine.OnnxruntimeEngine.write

    def harmful(self, model, folder, *, dtype, int8):
        import copy

        shifted = copy.deepcopy(model)
        for layer in {0, 1} - set(int8.unquantised):
            shifted.classifier.bias.data[0] += (40.0, 2.0)[layer]
        write(self, shifted, folder, dtype="fp32")

    monkeypatch.setattr(onnxruntime_engine.OnnxruntimeEngine, "write", harmful)


def test_what_costs_too_much_is_refused_and_nothing_is_written(
    elastic: ElasticModel, checks: Checks, tmp_path: Path, coarse: None
) -> None:
    settings = ExportSettings("onnxruntime", "int8", max_metric_drop=0.01, **QUICK)
    with pytest.raises(ModelFileError, match=r"w0.5-d0.5 in int8 loses 0\.\d+ of the metric on the select rows, more"):
        export(elastic, SMALL, tmp_path / "deploy", checks=checks, settings=settings)
    assert list(tmp_path.iterdir()) == []


def test_fallback_leaves_the_most_sensitive_layer_in_fp32(
    elastic: ElasticModel, checks: Checks, tmp_path: Path, coarse: None
) -> None:
    lossy = ExportSettings("onnxruntime", "int8", max_metric_drop=1.0, on_drop="fallback", **QUICK)
    assert export(elastic, SMALL, tmp_path / "lossy", checks=checks, settings=lossy).unquantised == ()
    some = export(elastic, SMALL, tmp_path / "some", checks=checks, settings=replace(lossy, max_metric_drop=0.3))
    assert some.unquantised == (0,)  # the one that shifts most
    low, gap, high = (
        some.parity.difference_low,
        some.parity.metric - some.parity.torch_metric,
        some.parity.difference_high,
    )
    assert low < gap < high < 0 and ExportIndex.of(tmp_path / "some").made.max_metric_drop == 0.3
    strict = export(elastic, SMALL, tmp_path / "strict", checks=checks, settings=replace(lossy, max_metric_drop=0))
    assert strict.unquantised == (0, 1) and strict.parity.metric == 1


def test_what_only_the_validation_rows_show_is_refused_with_both_numbers(
    elastic: ElasticModel, checks: Checks, tmp_path: Path, coarse: None
) -> None:
    easy = [replace(batch, labels=batch.labels * 0) for batch in checks.select]  # the class that the shift favours
    settings = ExportSettings("onnxruntime", "int8", on_drop="fallback", **QUICK)
    said = r"loses [01]\.\d+ \(95 % interval [01]\.\d+ to [01]\.\d+\) of the metric on the validation rows, more than "
    said += r"0\.01, but -[01]\.\d+ on the select rows by which it was made; .* take fp32$"
    with pytest.raises(ModelFileError, match=said):
        export(elastic, SMALL, tmp_path / "x", checks=Checks(MNLI, easy, checks.validation), settings=settings)
    assert list(tmp_path.iterdir()) == []


def test_equal_metrics_are_within_a_limit_of_nothing(elastic: ElasticModel, checks: Checks) -> None:
    making = _Making(elastic, SMALL, ExportSettings("onnxruntime", max_metric_drop=0.01, **QUICK), checks, None)
    assert making.is_within(0.93 - 0.92) and 0.93 - 0.92 > 0.01 and not making.is_within(0.0101)


def test_a_wrong_fp32_file_is_refused(elastic: ElasticModel, checks: Checks, tmp_path: Path, coarse: None) -> None:
    with pytest.raises(ModelFileError, match=r"differs from PyTorch by 42 in a logit, more than 0.0001"):
        export(elastic, SMALL, tmp_path / "deploy", checks=checks, settings=ExportSettings("onnxruntime", **QUICK))
    assert list(tmp_path.iterdir()) == []


def test_sizes_that_share_weights_store_them_once(elastic: ElasticModel, checks: Checks, tmp_path: Path) -> None:
    sizes = [Subnet(), Subnet(0.5, 1), SMALL]
    settings = ExportSettings("onnxruntime", "fp32", **QUICK)
    made = export_sharing(elastic, sizes, tmp_path / "deploy", checks=checks, settings=settings)
    assert [size.subnet for size in made] == [subnet.name for subnet in sizes]
    alone = export(elastic, Subnet(), tmp_path / "alone", checks=checks, settings=settings)
    weights = (tmp_path / "deploy" / "weights.data").stat().st_size
    n_tensors = len(elastic.model.state_dict())
    assert weights < (tmp_path / "alone" / "model.onnx.data").stat().st_size + 4096 * n_tensors
    assert alone.parity.max_difference < 1e-4 and all(size.parity.max_difference < 1e-4 for size in made)
    (tmp_path / "elsewhere").mkdir()
    moved = (tmp_path / "deploy").rename(tmp_path / "elsewhere" / "moved")  # nothing points to where it was written
    inputs = {name: rows.numpy() for name, rows in checks.validation[0].inputs.items()}
    for subnet in sizes:
        expected = elastic.at(subnet)(**checks.validation[0].inputs).logits.detach().numpy()
        np.testing.assert_allclose(open_export(moved, subnet=subnet.name)(inputs), expected, atol=1e-4)
    with pytest.raises(SettingError, match=r"several sizes here; choose one by --subnet: w1-d1, w0.5-d1, w0.5-d0.5"):
        open_export(moved)
    with pytest.raises(SettingError, match=r"unknown size 'w0.5'"):
        open_export(moved, subnet="w0.5")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "openvino"}, "share their weights as onnxruntime fp32 alone, not as openvino fp32"),
        ({"engine": "onnxruntime", "dtype": "int8"}, "not as onnxruntime int8"),
    ],
)
def test_only_onnx_in_fp32_shares_weights(
    settings: dict[str, str], message: str, elastic: ElasticModel, checks: Checks, tmp_path: Path
) -> None:
    with pytest.raises(SettingError, match=message):
        export_sharing(elastic, [SMALL], tmp_path / "x", checks=checks, settings=ExportSettings(**settings))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"on_drop": "shrug"}, "unknown on_drop 'shrug'; known: refuse, fallback"),
        ({"max_metric_drop": -1}, "max_metric_drop -1 must be 0 or more"),
        ({"shape": (0, 8)}, "must be 1 or more"),
        ({"dtype": "int4"}, "unknown dtype of openvino 'int4'"),
    ],
)
def test_settings_are_checked(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        ExportSettings(**wrong)


def test_what_is_no_export_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"has no export.json; give the --out of a `dynabert export`"):
        open_export(tmp_path)
    (tmp_path / "export.json").write_text(json.dumps({"format_version": 9}))
    with pytest.raises(ModelFileError, match="later version; update dynabert"):
        open_export(tmp_path)
    (tmp_path / "export.json").write_text(json.dumps({"format_version": 1}))
    with pytest.raises(ModelFileError, match="former version; export again"):
        open_export(tmp_path)
    (tmp_path / "export.json").write_text(json.dumps({"format_version": 2, "sizes": [{}]}))
    with pytest.raises(ModelFileError, match="is not what `dynabert export` writes"):
        open_export(tmp_path)
    (tmp_path / "export.json").write_text(json.dumps({"format_version": 4, "sizes": [], "labels": {"a": "x"}}))
    with pytest.raises(ModelFileError, match="is not what `dynabert export` writes"):
        open_export(tmp_path)


def test_the_deployed_form_is_measured(elastic: ElasticModel, checks: Checks, tmp_path: Path) -> None:
    settings = LatencySettings((1, 2), (8, 16), repeats=2, engine="onnxruntime", dtype="int8", n_threads=1)
    sweep = measure_deployed(elastic, checks.validation, task=MNLI, settings=settings, subnets=[Subnet(), SMALL])
    full, small = sweep.rows
    assert small.metric < 1 or small.quality.agreement < 1 or full.quality.agreement < 1  # int8 flips some row
    for row in sweep.rows:
        assert [(time.batch, time.seq) for time in row.cost.timings] == [(1, 8), (1, 16), (2, 8), (2, 16)]
        assert row.cost.latency_ms == row.cost.timings[0].median_ms > 0
        assert row.cost.file_bytes and row.cost.peak_bytes
    assert small.cost.file_bytes < full.cost.file_bytes and small.cost.flops < full.cost.flops
    assert sweep.context.precision == "int8" and sweep.context.machine.engine.startswith("onnxruntime ")
    assert sweep.context.machine.n_threads == 1 and sweep.context.seq_len == 8
    sweep.to_json(tmp_path / "sweep.json")
    assert Sweep.from_json(tmp_path / "sweep.json") == sweep


TEXTS = ["film is warm", "film is warm plot is flat number 3 3 4 cast is dull"]
WITHOUT = "import sys\nfor name in {names}: sys.modules[name] = None\n"


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[ElasticModel, Checks, object]:
    """A network with a tokenizer of its own, texts and what it says of them."""
    folder = tmp_path_factory.mktemp("job") / "encoder"
    write_encoder(folder, n_layers=4)
    model, tokenizer = load(folder, n_labels=2), load_tokenizer(folder)
    model.config.id2label = {0: "bad", 1: "good"}
    tokenizer.model_max_length = 9  # where training cut texts off
    rows = Rows(texts=(TEXTS,), labels=[0, 1], ids=[0, 1])
    drawn = encode(tokenizer, rows, max_length=9)
    given = tuple(Batches(drawn, batch_size=2, seed=0, pad_id=tokenizer.pad_token_id, shuffle=False))
    return ElasticModel(model), Checks(replace(MNLI, name="mine", labels=("bad", "good")), given, given), tokenizer


def logits_of(program: str, *, names: tuple[str, ...], folder: Path) -> np.ndarray:
    """What a program of its own process prints last, with some packages missing."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(names=names) + program], capture_output=True, text=True, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return np.array(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime", "torch"])
def test_the_card_says_how_to_run_it_without_dynabert(
    engine: str, job: tuple[ElasticModel, Checks, object], tmp_path: Path
) -> None:
    elastic, checks, tokenizer = job
    settings = ExportSettings(engine, **QUICK)
    out = tmp_path / "deploy"
    made = export(elastic, SMALL, out, checks=checks, settings=settings, save_tokenizer=tokenizer.save_pretrained)
    card = (out / "README.md").read_text()
    assert f"| {made.parity.metric:.4f} |" in card and f"`{ExportIndex.of(out).made.fingerprint}`" in card
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    code = code.replace('["some text", "another one"]', json.dumps(TEXTS))
    missing = ("dynabert", *(() if engine == "torch" else ("torch", "transformers", "onnx")))
    logits = logits_of(f"{code}\nimport json\nprint(json.dumps(logits.tolist()))", names=missing, folder=out)
    expected = predict(elastic.at(SMALL), checks.validation)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    said = [prediction.label for prediction in predict_lines(out, TEXTS, n_threads=1)]
    assert said == [("bad", "good")[best] for best in logits.argmax(axis=1)]
    sent = dict(push_folder(out, "me/small", dry_run=True).files)
    assert {"README.md", "export.json", "tokenizer.json"} < sent.keys()


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_opening_needs_the_engine_alone(engine: str, elastic: ElasticModel, checks: Checks, tmp_path: Path) -> None:
    export(elastic, SMALL, tmp_path / "deploy", checks=checks, settings=ExportSettings(engine, **QUICK))
    row = checks.validation[0].part(0, 1)
    inputs = {name: column.tolist() for name, column in row.inputs.items()}
    program = f"""
import json
import numpy as np
from dynabert.exported import open_export
run = open_export("deploy")
print(json.dumps(run({{name: np.array(column) for name, column in {inputs}.items()}}).tolist()))
"""
    missing = ("torch", "transformers", "onnx", "onnxscript", "nncf", "onnxruntime.quantization")
    logits = logits_of(program, names=missing, folder=tmp_path)
    np.testing.assert_allclose(logits, elastic.at(SMALL)(**row.inputs).logits.detach().numpy(), atol=1e-4)
