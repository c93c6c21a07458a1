"""A view that is run layer by layer computes what one forward of it does."""

import pytest
import torch
from helpers import FAMILY_NAMES, tiny_batch, tiny_model

from dynabert.elastic import ElasticModel
from dynabert.precision import TrainingViews
from dynabert.stack import Stack, evaluating
from dynabert.subnet import Subnet

SIZES = (Subnet(), Subnet(0.5, 0.5))


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("subnet", SIZES, ids=str)
def test_states_and_logits_are_those_of_one_forward(family, attention, subnet):
    elastic, batch = ElasticModel(tiny_model(family, attention=attention)), tiny_batch()
    assert_same(elastic.at(subnet), elastic.family, batch)


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_views_run_layer_by_layer_too(family, precision):
    elastic = ElasticModel(tiny_model(family))
    assert_same(TrainingViews(elastic, precision=precision).at(Subnet(0.5, 1)).eval(), elastic.family, tiny_batch())


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_extracted_models_run_layer_by_layer_too(family):
    elastic = ElasticModel(tiny_model(family))
    assert_same(elastic.extract(Subnet(0.5, 0.5)), elastic.family, tiny_batch())


def assert_same(view, family, batch):
    with torch.no_grad():
        expected = view(**batch.inputs, output_hidden_states=True)
        stack = Stack(view, family)
        states = list(stack.states(batch.inputs))
        assert torch.equal(stack.embed(batch.inputs), expected.hidden_states[0])
        assert len(states) == len(stack) == len(expected.hidden_states) - 1
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(states, expected.hidden_states[1:], strict=True))
        assert torch.equal(stack.head(states[-1]), expected.logits)


def test_a_block_in_eval_mode_ends_in_the_mode_before_even_after_an_error():
    one, two = torch.nn.Dropout(), torch.nn.Dropout().eval()
    with pytest.raises(RuntimeError), evaluating(one, two):
        assert not one.training and not two.training
        raise RuntimeError
    assert one.training and not two.training
