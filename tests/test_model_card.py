"""What model cards say, and that the hub's own parser reads it back."""

import re
from dataclasses import replace

import pytest
from small_studies import deployed_sweep

from dynabert.card_parts import HERE, Origin, header_of, is_unedited
from dynabert.description import Description
from dynabert.families import FAMILIES
from dynabert.measurement import Context, Cost, LatencySettings, Machine, Measurement, Quality
from dynabert.model_card import Small, elastic_card, small_card
from dynabert.subnet import EncoderShape, LayerSlice, Subnet, SubnetGrid
from dynabert.sweep import Sweep

SHAPE = EncoderShape(n_layers=6, n_heads=12, head_dim=32, hidden=384, n_neurons=1536)
SIZES = Description.of(SHAPE, SubnetGrid((1.0, 0.5), (1.0, 0.75)))
MACHINE = Machine("Some CPU", "cpu", 4, "2.13.0", "5.23.0", "0.1.0")
ORIGIN = Origin(
    task="mrpc",
    dataset="nyu-mll/glue",
    language="en",
    base_model="someone/encoder",
    rows="rows: 3,000 train, 300 select, 408 validation; fingerprint `0123`",
    recipe="`two-stage` (width; depth), seed 42",
    max_length=128,
    machine=MACHINE,
)


def sweep(latency=LatencySettings(), metrics=("accuracy", "f1")):  # noqa: B008 (a frozen value)
    context = Context("mrpc", metrics[0], 408, 0.9, "fp32", latency, MACHINE, "2026-01-02T03:04:05+00:00", "0123")
    rows = []
    for number, subnet in enumerate(SIZES.grid):
        values = {name: (80 + number) / 100 for name in metrics}
        quality = Quality(values, 0.75, 0.85, 0.9, 0.97)
        cost = Cost(10_000_000 + number, 2_000_000_000, 12.5 + number if latency else None)
        rows.append(Measurement(subnet.name, len(SIZES.slices(subnet)), 6, quality, cost, "transformers"))
    return Sweep(tuple(rows), context)


def elastic(**changes):
    return elastic_card(SIZES, FAMILIES["bert"], **{"sweep": sweep(), "origin": ORIGIN, **changes})


def small(subnet=Subnet(0.5, 0.75), **changes):
    return replace(Small(subnet, SIZES.slices(subnet), SHAPE, 7_000_000), **changes)


def test_every_size_stands_in_the_header_and_in_the_table():
    card = elastic()
    header = header_of(card)
    said = header.to_dict()
    assert (said["library_name"], said["base_model"], said["language"]) == ("transformers", "someone/encoder", "en")
    assert header.datasets == ["nyu-mll/glue"] and header.metrics == ["accuracy", "f1"]
    values = {(result.metric_args["subnet"], result.metric_type): result.metric_value for result in header.eval_results}
    assert values == {
        (row.subnet, name): row.quality.metrics[name] for row in sweep().rows for name in ("accuracy", "f1")
    }
    assert {result.dataset_config for result in header.eval_results} == {"mrpc"}
    for row in sweep().rows:
        assert re.search(rf"^\| `{row.subnet}` \|.*\| {row.metric:.4f} \|.*\| {row.cost.latency_ms:.2f} \|", card, re.M)
    assert "4 of 6" in card  # a depth of 0.75 really keeps 4


def test_deployed_forms_have_tables_of_their_own():
    card = elastic(deployed=[deployed_sweep("openvino", "int8"), deployed_sweep("onnxruntime", "fp32")])
    body = card.split("## As deployed")[1].split("## Use")[0]
    assert "In int8, run by openvino 1.0" in body and "In fp32, run by onnxruntime 1.0" in body
    assert "| size | accuracy | agreement | file, MB | memory, MB | ms, 1 x 16 | ms, 8 x 16 |" in body
    assert body.count("| `w1-d0.5` | 0.8500 | 93.0 % | 8.0 | 29.0 | 7.00 | 56.00 |") == 2
    assert "As deployed" not in elastic()
    assert len(header_of(card).eval_results) == len(header_of(elastic()).eval_results), "the hub shows what was trained"


def test_the_provenance_is_whole():
    card = elastic()
    for words in (
        *("3,000 train", "seed 42", "Teacher: accuracy 0.9000 on the same 408 rows", "Some CPU, 4 threads"),
        *("torch 2.13.0, transformers 5.23.0, dynabert 0.1.0", "2026-01-02", "Texts were cut off at 128 tokens"),
        *("Trained on Some CPU", "median of 20 calls of 1 x 128 tokens, torch fp32"),
    ):
        assert words in card, words


def test_metrics_have_the_names_of_the_hub():
    [first, *_] = header_of(elastic(sweep=sweep(metrics=("pearson", "spearman")))).eval_results
    assert (first.metric_type, first.metric_name) == ("pearsonr", "pearson of w1-d1")
    assert header_of(elastic(sweep=sweep(metrics=("matthews",)))).metrics == ["matthews_correlation"]


def test_the_split_is_the_one_that_was_measured():
    def splits(card):
        return {result.dataset_split for result in header_of(card).eval_results}

    card = elastic(split="validation_matched")
    assert splits(elastic()) == {"validation"} and splits(card) == {"validation_matched"}
    assert splits(small_card(small(), card)) == {"validation_matched"}, "taken over"


def test_nothing_measured_and_nothing_known():
    card = elastic(sweep=None, origin=None)
    header = header_of(card)
    assert header.eval_results is None and header.base_model is None and header.pipeline_tag is None
    assert "Nothing was measured" in card and "## Provenance" not in card
    assert " ms |" not in elastic(sweep=sweep(latency=None))
    own = elastic(origin=replace(ORIGIN, dataset=None, language=None, base_model=None, task="files"))
    assert "Base model: not on the hub" in own and header_of(own).datasets is None


def test_a_small_card_has_its_own_values_alone():
    card = small_card(small(), elastic(), sweep=sweep(), origin=ORIGIN)
    header = header_of(card)
    assert {(result.metric_name, result.metric_value) for result in header.eval_results} == {
        ("accuracy", 0.83),
        ("f1", 0.83),
    }
    assert header.model_name == "dynabert-bert-mrpc-w0.5-d0.75" and "elastic" not in header.tags
    assert "4 of 6 layers, 6 of 12 attention heads and 768 of 1,536 neurons" in card
    uneven = Subnet.of_layers(LayerSlice(0, 2, 64), LayerSlice(3, 5, 128))
    card = small_card(small(uneven, slices=uneven.layers), elastic())
    assert "2 of 6 layers, 2 to 5 of 12 attention heads and 64 to 128 of 1,536 neurons" in card
    assert "This size was not measured" in card


@pytest.mark.parametrize(
    ("changes", "n_ways", "words"),
    [
        ({}, 3, "trust_remote_code=True"),
        ({"pad_heads": True}, 1, "attention costs as much as with all heads"),
        ({"slices": SIZES.slices(Subnet(1, 0.75))}, 1, "A stock model"),
        ({"trained": False}, 3, "was not trained"),
    ],
    ids=["narrow", "padded", "stock", "untrained"],
)
def test_the_ways_to_load_are_those_that_work(changes, n_ways, words):
    card = small_card(small(**changes), elastic())
    assert card.count("```python") == n_ways and words in card and HERE in card
    assert ("trust_remote_code" in card) == (n_ways == 3) == ("custom_code" in header_of(card).tags)


def test_an_edited_card_is_known_for_one():
    for card in (elastic(), small_card(small(), "")):
        assert is_unedited(card)
        assert not is_unedited(card.replace("0.1.0", "0.2.0", 1).replace("DynaBERT", "Dynabert"))
        assert not is_unedited(card + "more\n") and not is_unedited("\n" + card)
    assert not is_unedited("") and not is_unedited("# Mine\n")
