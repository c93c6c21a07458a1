"""What needs a CUDA device; `make gpu` runs it where there is one."""

import pytest
import torch
from helpers import tiny_batch, tiny_model

from dynabert.distill import Training, train_stage
from dynabert.elastic import ElasticModel
from dynabert.recipes import RECIPES
from dynabert.rewire import rewire, score
from dynabert.subnet import Subnet, SubnetGrid

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


class Rows:
    """Eight batches, again and again."""

    def __len__(self) -> int:
        return 8

    def micro_batches(self, step: int):
        return (tiny_batch(seed=step % 8),)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_stages_run_on_the_device_and_learn(precision):
    elastic = ElasticModel(tiny_model("bert"), SubnetGrid((1, 0.5), (1, 0.5)))
    elastic.to("cuda")
    rewire(elastic, score(elastic, Rows()))
    for stage in RECIPES["two-stage"].adjusted(epochs=2, lr=1e-3).stages:
        train_stage(elastic, stage, Rows(), teacher=elastic.copy(), training=Training(precision=precision))
    for parameter in elastic.model.parameters():
        assert parameter.is_cuda and parameter.isfinite().all()


def test_views_and_extracted_models_agree_with_the_cpu():
    elastic, batch = ElasticModel(tiny_model("bert")), tiny_batch()
    with torch.inference_mode():
        expected = elastic.at(Subnet(0.5, 0.5))(**batch.inputs).logits
        elastic.to("cuda")
        inputs = batch.to("cuda").inputs
        for model in (elastic.at(Subnet(0.5, 0.5)), elastic.extract(Subnet(0.5, 0.5))):
            torch.testing.assert_close(model(**inputs).logits.cpu(), expected, rtol=1e-3, atol=1e-3)
