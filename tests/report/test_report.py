"""The files of a report: written whole, with the figures there are data for; hostile names stay text."""

import json
import re
import sys
from dataclasses import replace
from html import unescape

import numpy as np
import pytest
import torch
from small_studies import EFFECTS, SIZES, beside, made_sweep, write_ablation, write_comparison, write_deployed

from dynabert.errors import DataError, SettingError
from dynabert.files import write_json
from dynabert.report import REPORT_FILE, report_run
from dynabert.report.figure import COLOURS, SHAPES
from dynabert.rewire import Importance
from dynabert.studies.compare import ALL
from dynabert.studies.standings import OURS


@pytest.fixture
def begun(tmp_path):
    """A run folder that has no more than its settings."""
    run = tmp_path / "run"
    run.mkdir()
    write_json(run / "run.json", {"model": "an-encoder"})
    return run


@pytest.mark.parametrize("package", ["altair", "vl_convert"])
def test_a_missing_package_names_the_extra(begun, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SettingError, match=rf"{package}.*pip install 'dynabert\[report\]'"):
        report_run(begun)
    assert not (begun / REPORT_FILE).exists()


def test_a_run_that_has_only_begun_has_a_page(begun):
    made = report_run(begun)
    assert made.page == begun / REPORT_FILE and made.figures == ()
    assert made.n_bytes == made.page.stat().st_size
    text = made.page.read_text()
    assert "an-encoder" in text and made.left_out[0].split(";")[0] in text


def test_images_are_drawn_of_every_figure(begun, tmp_path):
    rng = np.random.default_rng(0)
    heads, neurons = torch.tensor(rng.random((2, 4))), torch.tensor(rng.random((2, 16)))
    Importance(heads, neurons, "loss").save(begun / "importance.safetensors")
    made = report_run(begun, tmp_path / "page.html", images=tmp_path / "images")
    assert made.page == tmp_path / "page.html" and made.figures == ("heads", "neurons")
    names = {f"{name}.{kind}" for name in ("heads", "neurons", "neurons-total") for kind in ("svg", "png")}
    assert {path.name for path in (tmp_path / "images").iterdir()} == {path.name for path in made.images} == names
    drawn = {path.name: path.read_bytes() for path in made.images}
    assert all(drawn[name].startswith(b"<svg" if name.endswith("svg") else b"\x89PNG") for name in names)
    assert drawn["neurons.svg"] != drawn["neurons-total.svg"]


def test_figures_stand_in_the_order_of_the_page(begun):
    made_sweep().to_json(begun / "sweep.json")
    write_comparison(begun, beside(made_sweep()))
    write_ablation(begun)
    write_deployed(begun)
    made = report_run(begun)
    assert made.figures == ("front", "gaps", "grid", "deployed", "ablations")
    places = [made.page.read_text().index(f'<section id="{name}"') for name in made.figures]
    assert places == sorted(places)


def test_captions_say_what_was_spent_on_training(begun):
    own = made_sweep()
    own.to_json(begun / "sweep.json")
    write_comparison(begun, {**beside(own), OURS: made_sweep(("w0.5-d1", "w1-d1"), latency=False)})
    write_ablation(begun)
    text = unescape(report_run(begun).page.read_text())
    captions = dict(re.findall(r'<p class="caption" id="(\w+)-caption">(.*?)</p>', text, re.DOTALL))
    assert "1.5 TFLOPs of training each, seeds 42, 43." in captions["front"]
    assert "Shown is seed 42." in captions["front"] and "DynaBERT, this run is the result" in captions["front"]
    assert "1.5 TFLOPs of training each, seeds 42, 43." in captions["gaps"] and "Holm" in captions["gaps"]
    assert "intervals over rows and seeds" in captions["gaps"]
    assert "No latency was measured of DynaBERT, deebert, layerdrop, but the time of validation rows." in text
    options = re.findall(r"<option[^>]*>(Time of an input.*?)</option>", text)
    assert [option[:30] for option in options] == ["Time of an input, one by one (", "Time of an input, in batches o"]
    assert "Left out: layerdrop-masked, for its masked phase needs a mask token." in captions["gaps"]
    assert "*: the lowest or highest rate" in captions["gaps"]
    assert "Ramps (deebert) learn at 10 times the rate shown." in captions["gaps"]
    assert "over rows of one training, another seed may differ by more" in captions["ablations"]
    assert "1 TFLOPs of training each, seed 42." in captions["ablations"] and "Holm" in captions["ablations"]


@pytest.mark.parametrize(
    ("texts", "message"), [((), "no texts to study"), (("",), "no texts to study"), (("a\tb\tc",), "tab")]
)
def test_texts_that_cannot_be_used_are_refused(begun, texts, message):
    with pytest.raises(DataError, match=message):
        report_run(begun, texts=texts)
    assert not (begun / "report.html").exists()


def test_a_run_that_was_measured_at_more_sizes_is_still_what_took_part(begun):
    own = made_sweep((*SIZES, "h1-n0.5-d1"))
    own.to_json(begun / "sweep.json")
    write_comparison(begun, {**beside(own), OURS: made_sweep(latency=False)})
    assert "DynaBERT, this run" not in report_run(begun).page.read_text()


def test_methods_are_told_apart_by_colour_and_shape():
    assert len(set(SHAPES)) == len(SHAPES) and len(set(COLOURS)) == len(COLOURS)
    drawn = {(COLOURS[n % len(COLOURS)], SHAPES[n % len(SHAPES)]) for n in range(len(ALL) + 2)}
    assert len(drawn) == len(ALL) + 2  # with DynaBERT's sizes and the run itself


def test_what_was_deployed_is_shown_by_what_it_costs(begun):
    made_sweep().to_json(begun / "sweep.json")
    write_deployed(begun)
    made = report_run(begun)
    data = json.loads(re.search(r'id="page-data">(.*?)</script>', made.page.read_text(), re.DOTALL)[1])
    shown = data["figures"]["deployed"]["data"]["front"]
    assert set(shown["method"]) == {"openvino int8", "onnxruntime fp32"}
    assert shown["latency_ms"][:2] == [8, 7] and shown["file_bytes"][:2] == [9, 8] and shown["peak_bytes"][0] == 30
    said = unescape(made.page.read_text())
    assert "openvino int8: 1 x 16 tokens by openvino 1.0 on a cpu, threads: 1" in said


def test_hostile_names_stay_text(begun, tmp_path):
    own, bad = made_sweep(), "</script><script>alert(1)</script>"
    own.to_json(begun / "sweep.json")
    write_comparison(begun, {bad: own, **beside(own)})
    write_ablation(begun, (replace(EFFECTS[0], variant=bad, where="../../mean"),))
    write_json(begun / "run.json", {"model": bad})
    text = report_run(begun, images=tmp_path / "images").page.read_text()
    assert "<script>alert" not in text and "</script><" not in text.replace("</script>\n<", "")
    data = re.search(r'<script type="application/json" id="page-data">(.*?)</script>', text, re.DOTALL)
    assert data and bad in json.loads(data[1])["figures"]["front"]["data"]["front"]["method"]
    assert len(list((tmp_path / "images").glob("ablations-*"))) == 2 and not list(tmp_path.glob("mean*"))


def test_the_page_asks_for_nothing(begun):
    made_sweep().to_json(begun / "sweep.json")
    text = report_run(begun).page.read_text()
    assert "default-src 'none'" in text
    outside = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r"""(src|href)=["'](?!#|data:)""", outside)
    assert "url(" not in outside and "@import" not in outside
