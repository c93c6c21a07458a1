"""ElasticModel: what it keeps, saves and loads."""

import json
from pathlib import Path

import pytest
import torch
from helpers import FAMILY_NAMES, tiny_batch, tiny_model
from transformers import AutoModelForSequenceClassification

from dynabert.description import parse_description
from dynabert.elastic import (
    ElasticLinear,
    ElasticModel,
    count_params,
    layers_of,
)
from dynabert.errors import ModelFileError, SettingError
from dynabert.model_files import ELASTIC
from dynabert.subnet import LayerSlice, Subnet, SubnetGrid

GRID = SubnetGrid((1.0, 0.5), (1.0, 0.75, 0.5))


def small(family="bert", **changes):
    return tiny_model(family, hidden=32, n_neurons=32, **changes)


def logits(model, batch=None):
    with torch.no_grad():
        return model(**(batch or tiny_batch()).inputs).logits


# What it keeps.


def test_slices_follow_the_depth_rule():
    model = small()
    assert [part.layer for part in ElasticModel(model, GRID).slices(Subnet(0.5, 0.5))] == [0, 2]
    assert [part.layer for part in ElasticModel(model, GRID, depth_rule="text").slices(Subnet(0.5, 0.5))] == [1, 3]
    assert [part.layer for part in ElasticModel(model, GRID, depth_rule="prefix").slices(Subnet(0.5, 0.25))] == [0]
    with pytest.raises(SettingError, match="unknown depth rule"):
        ElasticModel(model, GRID, depth_rule="none")


def test_kept_layers_override_the_rule():
    elastic = ElasticModel(small(), GRID, kept={0.5: (1, 2)})
    assert elastic.slices(Subnet(0.5, 0.5)) == (LayerSlice(1, 2, 16), LayerSlice(2, 2, 16))
    assert elastic.slices(Subnet(heads=1, neurons=0.5, depth=0.5)) == (LayerSlice(1, 4, 16), LayerSlice(2, 4, 16))
    assert [part.layer for part in elastic.slices(Subnet(0.5, 0.75))] == [0, 1, 2]
    assert [part.layer for part in elastic.copy().slices(Subnet(1, 0.5))] == [1, 2]
    by_hand = ElasticModel(small(), GRID).at(Subnet.of_layers(LayerSlice(1, 2, 16), LayerSlice(2, 2, 16)))
    assert torch.equal(logits(elastic.at(Subnet(0.5, 0.5))), logits(by_hand))


def test_a_grid_that_the_encoder_cannot_tell_apart_is_refused():
    with pytest.raises(SettingError, match="both keep 2 of 4 heads"):
        ElasticModel(small(), SubnetGrid((1, 0.5, 0.45)))
    with pytest.raises(SettingError, match="both keep 1 of 1 layers"):
        ElasticModel(small(n_layers=1))


def test_the_model_is_used_as_it_is():
    model = small()
    elastic = ElasticModel(model)
    assert elastic.model is model and elastic.grid == SubnetGrid() and elastic.shape.n_heads == 4
    assert elastic.family.model_type == "bert" and elastic.depth_rule == "paper"


def test_a_subnet_that_the_encoder_does_not_have():
    elastic = ElasticModel(small())
    with pytest.raises(SettingError, match="does not fit an encoder"):
        elastic.at(Subnet.of_layers(LayerSlice(4, 1, 1)))


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_base_models_are_elastic_too(family):
    model = small(family).base_model
    elastic = ElasticModel(model, GRID)
    view = elastic.at(Subnet(0.5, 0.5))
    assert type(view) is type(model)
    with torch.no_grad():
        states = view(**tiny_batch().inputs, output_hidden_states=True).hidden_states
    assert len(states) == 3
    assert len(layers_of(view, elastic.family)) == 2 and len(layers_of(model, elastic.family)) == 4


def test_counted_parameters():
    elastic = ElasticModel(small(), GRID)
    everything = sum(parameter.numel() for parameter in elastic.model.parameters())
    assert count_params(elastic.model) == count_params(elastic.at(Subnet())) == everything
    attention, feed_forward = 4 * 32 * 32 + 3 * 32, 2 * 32 * 32 + 32  # weights and biases that are cut
    rest = 32 + 32 + 4 * 32  # biases of the two outputs and the norms
    layer, half = attention + feed_forward + rest, (attention + feed_forward) // 2 + rest
    assert count_params(elastic.at(Subnet(0.5))) == everything - 4 * (layer - half)
    assert count_params(elastic.at(Subnet(0.5, 0.5))) == everything - 4 * layer + 2 * half


def test_moving_makes_earlier_views_void():
    elastic = ElasticModel(small())
    before, parameters = elastic.at(Subnet(0.5)), list(elastic.model.parameters())
    elastic.to("cpu")
    after = elastic.at(Subnet(0.5))
    assert after is not before
    assert all(mine is theirs for mine, theirs in zip(elastic.model.parameters(), parameters, strict=True))
    assert torch.equal(logits(after), logits(before))


def test_a_linear_says_its_sizes():
    weight, bias = torch.nn.Parameter(torch.zeros(6, 8)), torch.nn.Parameter(torch.zeros(6))
    assert repr(ElasticLinear(weight, bias, n_out=2, n_in=5)) == "ElasticLinear(5/8 -> 2/6)"
    assert repr(ElasticLinear(weight, None, n_out=1, n_in=8, parts=3)) == "ElasticLinear(8/8 -> 3/6)"


# Saving and loading.


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_saved_and_loaded_is_the_same(family, tmp_path):
    elastic = ElasticModel(small(family), GRID, depth_rule="prefix", kept={0.5: (1, 3)})
    elastic.save_pretrained(tmp_path / "model")
    again = ElasticModel.from_pretrained(tmp_path / "model")
    assert (again.grid, again.depth_rule, again.shape) == (GRID, "prefix", elastic.shape)
    assert again.description() == elastic.description()
    subnets = [*GRID, Subnet(heads=1, neurons=0.5, depth=0.5), Subnet(1, 0.25)]
    assert [again.slices(subnet) for subnet in subnets] == [elastic.slices(subnet) for subnet in subnets]
    assert [part.layer for part in again.slices(Subnet(1, 0.5))] == [1, 3]
    for subnet in subnets:
        assert torch.equal(logits(again.at(subnet)), logits(elastic.at(subnet)))


def test_stock_transformers_loads_the_full_network(tmp_path):
    elastic = ElasticModel(small(), GRID)
    elastic.save_pretrained(tmp_path / "model")
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert type(stock) is type(elastic.model)
    assert torch.equal(logits(stock), logits(elastic.model))


def test_views_taken_before_are_not_in_the_way_of_saving(tmp_path):
    elastic = ElasticModel(small(), GRID)
    expected = {subnet: logits(elastic.at(subnet)) for subnet in GRID}
    elastic.save_pretrained(tmp_path / "model")
    again = ElasticModel.from_pretrained(tmp_path / "model")
    assert all(torch.equal(logits(again.at(subnet)), expected[subnet]) for subnet in GRID)


def test_another_grid_may_be_asked_for(tmp_path):
    ElasticModel(small(), GRID, kept={0.5: (1, 3)}).save_pretrained(tmp_path / "model")
    other = SubnetGrid((1.0, 0.25), (1.0, 0.5))
    again = ElasticModel.from_pretrained(tmp_path / "model", other)
    assert again.grid == other
    assert [part.layer for part in again.slices(Subnet(0.25, 0.5))] == [1, 3]  # a saved depth keeps its meaning


def test_a_folder_without_a_description_gets_the_default_grid(tmp_path):
    small().save_pretrained(tmp_path / "model")
    assert ElasticModel.from_pretrained(tmp_path / "model").grid == SubnetGrid()
    assert ElasticModel.from_pretrained(tmp_path / "model", GRID).grid == GRID


def test_a_missing_folder(tmp_path):
    with pytest.raises(ModelFileError, match="nowhere") as caught:
        ElasticModel.from_pretrained(tmp_path / "nowhere")
    assert "\n" not in str(caught.value)


def test_the_description_is_plain_json(tmp_path):
    elastic = ElasticModel(small(), GRID)
    path = tmp_path / ELASTIC
    path.write_text(json.dumps(elastic.description()))
    assert json.loads(path.read_text()) == {
        "format_version": 1,
        "widths": [1.0, 0.5],
        "depths": [1.0, 0.75, 0.5],
        "depth_rule": "paper",
        "layers": {"1.0": [0, 1, 2, 3], "0.75": [0, 1, 2], "0.5": [0, 2]},
    }
    assert parse_description(path) == (GRID, "paper", {1.0: (0, 1, 2, 3), 0.75: (0, 1, 2), 0.5: (0, 2)})


GOOD = {
    "format_version": 1,
    "widths": [1.0, 0.5],
    "depths": [1.0, 0.5],
    "depth_rule": "paper",
    "layers": {"1.0": [0, 1, 2, 3], "0.5": [0, 2]},
}


def without(name):
    return {key: value for key, value in GOOD.items() if key != name}


DAMAGED = {
    "no JSON": '{"format_version": 1, "wid',
    "empty": "",
    "a list": "[]",
    "a number": "1",
    **{f"without {name}": without(name) for name in GOOD},
    "a later format": {**GOOD, "format_version": 2},
    "widths above 1": {**GOOD, "widths": [2.0]},
    "no widths": {**GOOD, "widths": []},
    "widths of text": {**GOOD, "widths": ["all"]},
    "a width alone": {**GOOD, "widths": 1.0},
    "an unknown rule": {**GOOD, "depth_rule": "papier"},
    "a rule of another kind": {**GOOD, "depth_rule": ["paper"]},
    "layers as a list": {**GOOD, "layers": [[0, 1]]},
    "a depth of text": {**GOOD, "layers": {"half": [0, 2]}},
    "a layer of text": {**GOOD, "layers": {**GOOD["layers"], "0.5": ["first"]}},
    "a layer that is not there": {**GOOD, "layers": {**GOOD["layers"], "0.5": [0, 4]}},
    "a negative layer": {**GOOD, "layers": {**GOOD["layers"], "0.5": [-1]}},
    "a fraction of a layer": {**GOOD, "layers": {**GOOD["layers"], "0.5": [0.5]}},
    "layers out of order": {**GOOD, "layers": {**GOOD["layers"], "0.5": [2, 0]}},
    "a layer twice": {**GOOD, "layers": {**GOOD["layers"], "0.5": [1, 1]}},
    "a depth without layers": {**GOOD, "layers": {**GOOD["layers"], "0.5": []}},
}


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    small().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_description_is_refused_in_one_line(damage, plain_folder):
    content = DAMAGED[damage]
    path = Path(plain_folder) / ELASTIC
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ModelFileError) as caught:
        ElasticModel.from_pretrained(plain_folder)
    assert ELASTIC in str(caught.value) and "\n" not in str(caught.value)
