import copy
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import FAMILY_NAMES, tiny_batch, tiny_model
from scipy.spatial.distance import jensenshannon
from small_job import small_plan, write_job

from dynabert import cli
from dynabert.batches import Batch
from dynabert.elastic import ElasticModel
from dynabert.errors import DataError, SettingError
from dynabert.results import load_result, load_teacher
from dynabert.rewire import Importance, permute
from dynabert.run import train
from dynabert.studies.attention import attention_maps, attention_of_run, attention_study, similarities
from dynabert.subnet import LayerSlice, Subnet, SubnetGrid

HALF = Subnet(0.5, 0.5)
GRID = SubnetGrid((1, 0.5), (1, 0.5))


def networks(family: str = "bert") -> tuple[ElasticModel, ElasticModel]:
    """A network, and another that stands for it after training."""
    teacher = ElasticModel(tiny_model(family), GRID)
    trained = teacher.copy()
    other = tiny_model(family, seed=1).state_dict()
    with torch.no_grad():
        for name, parameter in trained.model.named_parameters():
            parameter.lerp_(other[name], 0.2)
    return teacher, trained


def lengthened(batch: Batch, by: int) -> Batch:
    """The same rows with more padding."""
    return replace(batch, inputs={n: torch.nn.functional.pad(t, (0, by), value=0) for n, t in batch.inputs.items()})


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_full_maps_are_those_of_the_stock_model(family: str) -> None:
    inputs = tiny_batch().inputs
    stock = tiny_model(family, attention="eager")
    with torch.no_grad():
        expected = stock(**inputs, output_attentions=True).attentions
    maps = attention_maps(ElasticModel(tiny_model(family)), inputs, [Subnet()])[Subnet()]
    assert len(maps) == 4
    for found, known in zip(maps, expected, strict=True):
        assert torch.equal(found, known)


def test_maps_of_a_subnet_are_those_of_the_extracted_model() -> None:
    inputs, elastic = tiny_batch().inputs, ElasticModel(tiny_model("bert"), GRID)
    uneven = Subnet.of_layers(LayerSlice(1, 3, 16), LayerSlice(3, 1, 64))
    for subnet, maps in attention_maps(elastic, inputs, [HALF, uneven]).items():
        small = elastic.extract(subnet).eval()
        small.set_attn_implementation("eager")
        with torch.no_grad():
            expected = small(**inputs, output_attentions=True).attentions
        assert [m.shape[1] for m in maps] == [part.n_heads for part in elastic.slices(subnet)]
        for found, known in zip(maps, expected, strict=True):
            assert torch.allclose(found, known, atol=1e-6)


def test_maps_leave_the_model_and_its_views_as_they_are() -> None:
    inputs, elastic = tiny_batch().inputs, ElasticModel(tiny_model("bert", dropout=0.5).train(), GRID)
    view = elastic.at(HALF)
    before = copy.deepcopy(elastic.model.state_dict())
    first, again = (attention_maps(elastic, inputs, [HALF])[HALF] for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True)), "eval mode: no dropout"
    assert elastic.at(HALF) is view and view.training and elastic.model.training
    for model in (elastic.model, view):
        assert model.config._attn_implementation == "sdpa"
        assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in elastic.model.state_dict().items())


def test_rows_of_tokens_sum_to_one_and_padding_is_not_attended_to() -> None:
    batch, elastic = tiny_batch(), ElasticModel(tiny_model("roberta"), GRID)
    padding = batch.inputs["attention_mask"] == 0
    assert padding.any()
    for maps in attention_maps(elastic, batch.inputs, GRID).values():
        for layer in maps:
            rows = layer.transpose(1, 2)[~padding]
            assert torch.allclose(rows.sum(-1), torch.ones(rows.shape[:-1]), atol=1e-5)
            assert not layer[padding[:, None, None].expand_as(layer)].any()


def test_similarity_by_hand() -> None:
    first, second, both = torch.tensor([[1.0, 0], [1, 0]]), torch.tensor([[0.0, 1], [0, 1]]), torch.full((2, 2), 0.5)
    found = similarities((torch.stack([first, second])[None],), (torch.stack([first, both])[None],), torch.ones(1, 2))
    # Of (1, 0) and (1/2, 1/2): their mean (3/4, 1/4) has an entropy of 0.8113 bits, they have 0 and 1.
    assert found[0].numpy() == pytest.approx(np.array([[1, 1 - (0.8112781 - 0.5)], [0, 1 - (0.8112781 - 0.5)]]))


def test_similarity_is_one_minus_the_divergence_of_scipy() -> None:
    batch, (teacher, trained) = tiny_batch(), networks()
    full = attention_maps(teacher, batch.inputs, [Subnet()])[Subnet()]
    small = attention_maps(trained, batch.inputs, [HALF])[HALF]
    found = similarities(full, small, batch.inputs["attention_mask"])
    assert found.shape == (5, 16, 4)
    for text in (0, 3):
        n = int(batch.inputs["attention_mask"][text].sum())
        for pattern, head in ((0, 0), (6, 1), (15, 3)):
            p = full[pattern // 4][text, pattern % 4, :n, :n].double().numpy()
            q = small[head // 2][text, head % 2, :n, :n].double().numpy()
            divergence = np.mean(jensenshannon(p, q, axis=1, base=2) ** 2)
            assert float(found[text, pattern, head]) == pytest.approx(1 - divergence, abs=1e-5)


def test_a_network_covers_itself_in_any_order_of_heads() -> None:
    batch, teacher = tiny_batch(), networks()[0]
    mask, patterns = batch.inputs["attention_mask"], attention_maps(teacher, batch.inputs, [Subnet()])[Subnet()]
    whole = similarities(patterns, patterns, mask).mean(0)
    assert torch.allclose(whole.amax(-1), torch.ones(16), atol=1e-5)
    assert torch.equal(whole.argmax(-1), torch.arange(16))
    order = torch.tensor([[2, 0, 3, 1]] * 4)
    permute(teacher, order, torch.arange(64).expand(4, -1))
    moved = attention_maps(teacher, batch.inputs, [Subnet()])[Subnet()]
    shuffled = similarities(patterns, moved, mask).mean(0)
    assert torch.allclose(shuffled.amax(-1), torch.ones(16), atol=1e-5)
    # The head that was number 2 is now number 0, and so on.
    assert torch.equal(shuffled.argmax(-1), torch.cat([4 * layer + order[layer].argsort() for layer in range(4)]))


def test_padding_changes_no_similarity() -> None:
    batch, (teacher, trained) = tiny_batch(), networks()
    found = []
    for padded in (batch, lengthened(batch, 6)):
        full = attention_maps(teacher, padded.inputs, [Subnet()])[Subnet()]
        small = attention_maps(trained, padded.inputs, [HALF])[HALF]
        found.append(similarities(full, small, padded.inputs["attention_mask"]))
    assert torch.allclose(*found, atol=1e-5)
    assert found[0].std() > 0.02


def test_the_study_of_an_untrained_network_finds_the_cut() -> None:
    teacher, _ = networks()
    study = attention_study(teacher, teacher.copy(), [tiny_batch(seed) for seed in range(3)], threshold=0.9)
    assert [row.subnet for row in study.rows] == [subnet.name for subnet in GRID]
    assert [row.n_heads for row in study.rows] == [16, 8, 8, 4] and study.n_patterns == 16 and study.n_texts == 15
    for row in study.rows:
        assert row.scores["distilled"] == row.scores["cut"]
        assert row.scores["distilled - cut"].similarity == (0, 0, 0)
    whole, *smaller = study.rows
    for source in ("distilled", "cut", "unchanged"):
        assert whole.scores[source].covered == (1, 1, 1) and whole.scores[source].removed is None
    for row in smaller:
        score = row.scores["distilled"].similarity
        assert score.low is not None and score.high is not None and score.low < score.value < score.high < 1
        assert row.scores["unchanged"].covered.value >= row.n_heads / 16
    # The heads of the first layer attend as they did, whatever is cut after them.
    narrow = study.rows[2]
    assert narrow.subnet == "w0.5-d1" and narrow.matching.best[:2] == pytest.approx((1, 1), abs=1e-5)
    assert narrow.matching.nearest[:2] == ((0, 0), (0, 1))


def test_how_texts_are_batched_does_not_matter() -> None:
    (teacher, trained), batch = networks(), tiny_batch()
    pieces = [
        replace(batch, inputs={name: tensor[rows] for name, tensor in batch.inputs.items()}, ids=batch.ids[rows])
        for rows in (slice(0, 2), slice(2, 5))
    ]
    whole, parts = (attention_study(teacher, trained, given) for given in ([batch], pieces))
    for one, other in zip(whole.rows, parts.rows, strict=True):
        assert one.matching.best == pytest.approx(other.matching.best, abs=1e-5)
        assert one.scores["distilled"].similarity == pytest.approx(other.scores["distilled"].similarity, abs=1e-5)


def test_what_a_study_refuses() -> None:
    teacher, trained = networks()
    batches = [tiny_batch()]
    with pytest.raises(SettingError, match="at least one Subnet"):
        attention_study(teacher, trained, batches, subnets=())
    with pytest.raises(SettingError, match="threshold 1 is outside"):
        attention_study(teacher, trained, batches, threshold=1)
    with pytest.raises(SettingError, match="does not fit"):
        attention_study(ElasticModel(tiny_model("bert", n_layers=2), GRID), trained, batches)
    with pytest.raises(DataError, match="no texts"):
        attention_study(teacher, trained, [])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    train(*write_job(folder), folder / "run", plan=small_plan(), latency=None)
    return folder / "run"


def test_the_rewired_teacher_is_the_teacher_with_its_heads_in_the_order_of_the_run(finished: Path) -> None:
    elastic = load_result(finished)
    plain, rewired = load_teacher(finished, elastic), load_teacher(finished, elastic, rewired=True)
    inputs = {"input_ids": torch.tensor([[0, 7, 9, 12, 2]]), "attention_mask": torch.ones(1, 5, dtype=torch.long)}
    with torch.no_grad():
        assert torch.allclose(plain.model(**inputs).logits, rewired.model(**inputs).logits, atol=1e-5)
    orders, _ = Importance.load(finished / "importance.safetensors").order()
    assert not torch.equal(orders, torch.arange(4).expand(2, -1)), "otherwise this shows nothing"
    maps = [attention_maps(network, inputs, [Subnet()])[Subnet()] for network in (plain, rewired)]
    for layer, order in enumerate(orders):
        assert torch.allclose(maps[0][layer][:, order], maps[1][layer], atol=1e-5)


def test_the_study_of_a_run(finished: Path) -> None:
    told: list[tuple[str, int, int]] = []
    study = attention_of_run(finished, n_rows=12, progress=lambda *what: told.append(what))
    assert study.n_texts == 12 and study.n_patterns == 8 and len(study.rows) == 4
    assert told[-1] == ("attention", 2, 2)
    assert study.rows[0].scores["cut"].similarity.value == pytest.approx(1, abs=1e-5)
    assert study.rows[0].scores["distilled"].similarity.value < 1
    # The heads stand in the order of the run: most are closest to the one at their place, which they were made from.
    places = [(layer, head) for layer in range(2) for head in range(4)]
    own = [found == place for found, place in zip(study.rows[0].matching.nearest, places, strict=True)]
    assert sum(own) >= 6
    assert attention_of_run(finished, n_rows=12) == study
    assert attention_of_run(finished, n_rows=1000).n_texts == 40
    with pytest.raises(SettingError, match="0 rows"):
        attention_of_run(finished, n_rows=0)


def test_what_validation_rows_say_is_kept_in_the_run_and_texts_leave_that_as_it_is(
    finished: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = finished / "studies" / "attention.json"
    for n_rows in (5, 3):
        study = attention_of_run(finished, n_rows=n_rows)
        assert json.loads(kept.read_text()) == json.loads(json.dumps(study.to_dict())), "that of the last call"
    before = kept.read_bytes()
    attention_of_run(finished, texts=["film is warm"])
    assert kept.read_bytes() == before
    kept.unlink()
    kept.mkdir()
    assert attention_of_run(finished, n_rows=3) == study, "what cannot be kept is told all the same"
    assert "not kept for the report" in caplog.text and str(kept) in caplog.text
    kept.rmdir()


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["dynabert", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


def test_the_command(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "attention", finished, "--rows", 10, "--out", tmp_path / "study.json", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((tmp_path / "study.json").read_text())
    assert told == json.loads((finished / "studies" / "attention.json").read_text())
    assert told["n_texts"] == 10 and told["threshold"] == 0.85
    assert list(told["rows"][-1]["scores"])[:4] == ["distilled", "cut", "unchanged", "random"]

    (tmp_path / "texts.txt").write_text("film is warm\n\nplot is flat number 3\n")
    assert call(monkeypatch, "attention", finished, "--text", tmp_path / "texts.txt") == 0
    assert "on 2 texts" in capsys.readouterr().out
    assert call(monkeypatch, "attention", finished, "--text", "film is warm") == 0
    shown = capsys.readouterr().out
    assert "w0.5-d0.5" in shown and "on 1 text," in shown and " to " not in shown.split("95 %")[1].split("\n")[2]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--plot", "figure.jpg"), 2, (".jpg", ".svg")),
        (("--threshold", 1.5), 2, ("1.5", "0.85")),
        (("--text", " "), 3, ("no texts",)),
        (("--rows", 0), 2, ("0 rows",)),
    ],
)
def test_a_mistake_is_one_line(
    arguments: tuple[object, ...],
    code: int,
    says: tuple[str, ...],
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "attention", finished, *arguments) == code
    shown = capsys.readouterr()
    assert shown.out == "" and len(shown.err.strip().splitlines()) == 1, shown.err
    assert all(word in shown.err for word in says)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "begins"), [("figure.svg", b"<svg"), ("figure.png", b"\x89PNG")])
def test_the_figure(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, begins: bytes) -> None:
    pytest.importorskip("altair", reason="figures: install dynabert[report]")
    pytest.importorskip("vl_convert", reason="figures: install dynabert[report]")
    assert call(monkeypatch, "attention", finished, "--rows", 6, "--plot", tmp_path / name) == 0
    drawn = (tmp_path / name).read_bytes()
    assert drawn.startswith(begins)
    if name.endswith("svg"):
        for word in ("the same heads, unchanged", "patterns covered", "removed patterns"):
            assert word in drawn.decode()
        panels = re.findall(r">(\d layers?)<", drawn.decode())
        assert panels == ["2 layers", "1 layer"] * 2, "the deepest first, above and below"


def test_a_figure_without_its_packages_names_the_extra(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dynabert.studies.drawing import check_figure

    monkeypatch.setitem(sys.modules, "altair", None)
    with pytest.raises(SettingError, match=r"pip install 'dynabert\[report\]'"):
        check_figure(Path("figure.svg"))
