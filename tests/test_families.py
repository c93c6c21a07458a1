"""The families table says where a model keeps its layers, heads and neurons."""

import pytest
from helpers import FAMILY_NAMES, tiny_model
from torch import nn
from transformers import CONFIG_MAPPING, MODEL_MAPPING, AutoConfig

from dynabert.elastic import layers_of
from dynabert.errors import SettingError
from dynabert.families import FAMILIES, Projection, family_of
from dynabert.subnet import EncoderShape


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_every_path_leads_to_a_linear_of_the_size_it_claims(name):
    model, family = tiny_model(name), family_of(name)
    shape = family.shape(model.config)
    assert shape == EncoderShape(n_layers=4, n_heads=4, head_dim=16, hidden=64, n_neurons=64)
    sizes = {"heads": shape.n_heads * shape.head_dim, "neurons": shape.n_neurons, None: shape.hidden}
    layers = layers_of(model, family)
    assert len(layers) == shape.n_layers
    for layer in layers:
        for projection in family.projections:
            linear = layer.get_submodule(projection.path)
            assert linear.out_features == projection.parts * sizes[projection.rows]
            assert linear.in_features == sizes[projection.columns]
        named = {path for path, module in layer.named_modules() if isinstance(module, nn.Linear)}
        assert named == {projection.path for projection in family.projections}  # none of a layer's linears is left out


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_the_base_model_has_its_layers_in_the_same_place(name):
    family, model = family_of(name), tiny_model(name)
    assert layers_of(model.base_model, family) is layers_of(model, family)


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_the_name_is_transformers_own(name):
    family = FAMILIES[name]
    assert family.model_type == name == CONFIG_MAPPING[name].model_type
    assert MODEL_MAPPING[CONFIG_MAPPING[name]].__name__ == f"{family.classes}Model"
    assert family.narrow_model_type == f"dynabert-{name}"


def test_sizes_are_read_from_the_configuration():
    config = AutoConfig.for_model(
        "bert", num_hidden_layers=3, num_attention_heads=6, hidden_size=48, intermediate_size=99
    )
    assert family_of("bert").shape(config) == EncoderShape(3, 6, 8, 48, 99, "plain")


def test_where_heads_and_neurons_are_summed():
    bert = family_of("bert")
    assert bert.consuming("heads") == Projection("attention.output.dense", columns="heads")
    assert bert.consuming("neurons") == Projection("output.dense", columns="neurons")


def test_an_unknown_family_is_refused():
    with pytest.raises(
        SettingError, match=r"unknown model family 'gpt2'; known: bert, roberta, xlm-roberta, camembert"
    ):
        family_of("gpt2")
