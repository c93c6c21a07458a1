"""Parameters and FLOPs of every Subnet of DynaBERT's grid, against the published plots (exact from the slicing rules).

Parameters are those of a base model with pooler and no task head; billions of FLOPs are at 128 tokens.
"""

import pytest
import torch
from helpers import FAMILY_NAMES, tiny_model
from transformers import BertConfig, BertModel, PreTrainedModel, RobertaConfig, RobertaModel

from dynabert.elastic import ElasticModel, count_params
from dynabert.subnet import Subnet, encoder_flops

# width, depth: parameters of BERT and RoBERTa, billions of FLOPs
PAPER = {
    (1.0, 1.0): (109_482_240, 124_645_632, 22.35),
    (0.75, 1.0): (88_232_448, 103_395_840, 16.76),
    (0.5, 1.0): (66_982_656, 82_146_048, 11.17),
    (0.25, 1.0): (45_732_864, 60_896_256, 5.59),
    (1.0, 0.75): (88_218_624, 103_382_016, 16.76),
    (0.75, 0.75): (72_281_280, 87_444_672, 12.57),
    (0.5, 0.75): (56_343_936, 71_507_328, 8.38),
    (0.25, 0.75): (40_406_592, 55_569_984, 4.19),
    (1.0, 0.5): (66_955_008, 82_118_400, 11.17),
    (0.75, 0.5): (56_330_112, 71_493_504, 8.38),
    (0.5, 0.5): (45_705_216, 60_868_608, 5.59),
    (0.25, 0.5): (35_080_320, 50_243_712, 2.79),
}


def base(kind: str) -> PreTrainedModel:
    with torch.device("meta"):
        if kind == "bert":
            return BertModel(BertConfig())
        return RobertaModel(RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1))


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_params_equal_the_paper(kind: str) -> None:
    elastic = ElasticModel(base(kind))
    column = ("bert", "roberta").index(kind)
    counted = {(s.width, s.depth): count_params(elastic.at(s)) for s in elastic.grid}
    assert counted == {point: values[column] for point, values in PAPER.items()}


def test_flops_equal_the_paper() -> None:
    elastic = ElasticModel(base("bert"))
    flops = {(s.width, s.depth): encoder_flops(elastic.shape, elastic.slices(s)) for s in elastic.grid}
    assert flops[1.0, 1.0] == 22_347_251_712
    assert {point: round(value / 1e9, 2) for point, value in flops.items()} == {p: v[2] for p, v in PAPER.items()}
    # every one is the full count times the share of heads and layers kept: nothing but those layers counts
    assert all(value * 48 == 22_347_251_712 * (w * 4) * (round(d * 12)) for (w, d), value in flops.items())


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_view_has_as_many_params_as_the_extracted_model(family: str) -> None:
    elastic = ElasticModel(tiny_model(family))
    for subnet in (Subnet(), Subnet(0.75, 0.5), Subnet(0.25, 0.75), Subnet(heads=1, neurons=0.5, depth=0.5)):
        small = elastic.extract(subnet)
        assert count_params(elastic.at(subnet)) == sum(weight.numel() for weight in small.parameters())


def test_tied_weights_count_once() -> None:
    from transformers import BertForMaskedLM

    with torch.device("meta"):
        model = BertForMaskedLM(BertConfig())
    model.tie_weights()
    expected = sum(weight.numel() for weight in model.parameters())
    assert count_params(ElasticModel(model).at(Subnet())) == expected == 109_514_298
