"""What takes the model of a run: computed as measuring does, kept with a fingerprint, made anew for another sweep."""

import base64
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from dynabert.batches import Batch
from dynabert.errors import ModelFileError
from dynabert.loading import load_tokenizer
from dynabert.report import network
from dynabert.report.network import ATTENTION_FILE, MAX_LENGTH, PREDICTIONS_FILE, TEACHER, Network, choose_texts
from dynabert.results import load_result, load_sweep
from dynabert.studies.attention import attention_maps


@pytest.fixture(scope="module")
def kept(finished):
    """A run folder whose predictions and attention maps have been kept."""
    of_run = Network(finished, load_sweep(finished))
    of_run.predictions(), of_run.attention()
    return finished


def network_of(run, sweep=None):
    return Network(run, sweep or load_sweep(run))


def no_model(monkeypatch):
    """Nothing can be computed any more."""

    def refuse(_):
        raise ModelFileError("the model was asked for")

    monkeypatch.setattr(network, "load_result", refuse)


def test_predictions_say_what_was_measured(kept):
    sweep, found = load_sweep(kept), network_of(kept).predictions()
    assert list(found.logits) == [TEACHER, *(row.subnet for row in sweep.rows)]
    teacher = found.logits[TEACHER].argmax(1)
    assert np.mean(teacher == found.labels) == pytest.approx(sweep.context.reference)
    for row in sweep.rows:
        said = found.logits[row.subnet].argmax(1)
        assert np.mean(said == found.labels) == pytest.approx(row.metric)
        assert np.mean(said == teacher) == pytest.approx(row.quality.agreement)


def test_attention_maps_are_kept_to_255ths(kept):
    found = network_of(kept).attention()
    elastic = load_result(kept)
    assert len(found.texts) == network.N_TEXTS and len({text.text for text in found.texts}) == network.N_TEXTS
    for text in found.texts:
        seq = len(text.tokens)
        for subnet in network_of(kept).subnets:
            maps, slices = text.maps[subnet.name], elastic.slices(subnet)
            assert maps.layers == tuple(part.layer for part in slices)
            assert maps.heads == tuple(part.n_heads for part in slices)
            weights = np.frombuffer(base64.b64decode(maps.weights), np.uint8).reshape(sum(maps.heads), seq, seq)
            assert np.allclose(weights.sum(2) / 255, 1, atol=seq / 255), "what a token attends to sums to 1"


def test_what_is_kept_needs_no_model(kept, monkeypatch):
    first = network_of(kept).predictions(), network_of(kept).attention()
    no_model(monkeypatch)
    again = network_of(kept).predictions(), network_of(kept).attention()
    assert all(np.array_equal(first[0].logits[name], again[0].logits[name]) for name in first[0].logits)
    assert again[1] == first[1]


@pytest.mark.parametrize("file", [PREDICTIONS_FILE, ATTENTION_FILE])
@pytest.mark.parametrize("spoil", ["damaged", "of another sweep", "of another version"])
def test_what_is_kept_of_something_else_is_made_anew(kept, tmp_path, monkeypatch, file, spoil):
    shutil.copy(kept / file, tmp_path)
    sweep = load_sweep(kept)
    if spoil == "damaged":
        (tmp_path / file).write_bytes((kept / file).read_bytes()[:-9])
    elif spoil == "of another version":
        monkeypatch.setattr(network, "FORMAT_VERSION", network.FORMAT_VERSION + 1)
    else:
        sweep = replace(sweep, context=replace(sweep.context, fingerprint="another"))
    no_model(monkeypatch)
    of_run = network_of(tmp_path, sweep)
    with pytest.raises(ModelFileError, match="the model was asked for"):
        of_run.predictions() if file == PREDICTIONS_FILE else of_run.attention()


def test_weights_that_were_not_measured_are_refused(kept, tmp_path):
    run = shutil.copytree(kept, tmp_path / "run")
    (run / PREDICTIONS_FILE).unlink()
    saved = json.loads((run / "sweep.json").read_text())
    saved["context"]["fingerprint"] = "of other weights"
    (run / "sweep.json").write_text(json.dumps(saved))
    with pytest.raises(ModelFileError, match="dynabert measure"):
        network_of(run).predictions()


def test_texts_that_are_asked_for_are_shown_as_given_and_not_kept(kept):
    before = (kept / ATTENTION_FILE).read_bytes()
    asked = ("film is warm", "plot is dull", " ".join(["warm"] * 40))
    found = Network(kept, load_sweep(kept), texts=asked).attention()
    assert [text.text for text in found.texts[:2]] == list(asked[:2]), "in the order of asking"
    assert len(found.texts[2].tokens) == MAX_LENGTH
    elastic = load_result(kept)
    ids = load_tokenizer(kept / "elastic")(asked[1], return_tensors="pt")
    for subnet, layers in attention_maps(elastic, ids, network_of(kept).subnets).items():
        assert found.texts[1].maps[subnet.name].weights == network.packed(layers)
    assert (kept / ATTENTION_FILE).read_bytes() == before


def test_texts_beyond_what_a_page_holds_are_left_out_and_named(kept, monkeypatch, caplog):
    monkeypatch.setattr(network, "MAX_WEIGHTS", 1)
    found = Network(kept, load_sweep(kept), texts=("film is warm", "plot is dull")).attention()
    assert [text.text for text in found.texts] == ["film is warm"]
    assert "the first 1 of 2 texts" in caplog.text


def batch_of(lengths, labels, first_id=0):
    """Rows of ones, padded, whose ids are numbered on."""
    mask = (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()
    ids = torch.arange(first_id, first_id + len(lengths))
    return Batch({"input_ids": mask.clone(), "attention_mask": mask}, torch.tensor(labels), ids)


def test_texts_are_of_a_good_length_and_of_every_class():
    batches = [batch_of([12, 12, 3], [0, 0, 0]), batch_of([40, 13, 30], [1, 0, 1], first_id=3)]
    chosen = choose_texts(batches, 3)
    assert [(int(row.ids), int(row.labels)) for row in chosen] == [(0, 0), (3, 1), (1, 0)]
    assert [row.inputs["input_ids"].shape for row in chosen] == [(1, 12), (1, MAX_LENGTH), (1, 12)]
    assert all(row.inputs["attention_mask"].all() for row in chosen), "no padding"


def test_rows_of_a_regression_are_chosen_by_length_alone():
    chosen = choose_texts([batch_of([12, 11, 14, 4], [0.5, 0.5, 3.0, 2.0])], 3)
    assert [int(row.ids) for row in chosen] == [0, 1, 2]
