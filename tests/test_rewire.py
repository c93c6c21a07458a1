"""Scoring heads and neurons, and the permutation by score."""

import copy
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers import FAMILY_NAMES, tiny_batch, tiny_model
from torch import nn
from torch.nn import functional as F

from dynabert.batches import Batch
from dynabert.elastic import ElasticModel, layers_of
from dynabert.errors import DataError, ModelFileError, NonFiniteError, SettingError
from dynabert.families import Family, Projection, family_of
from dynabert.rewire import ORDERS, SCORES, Importance, permute, reordered, rewire, score
from dynabert.subnet import EncoderShape, Subnet

SIZES = {"n_layers": 3, "hidden": 32, "n_neurons": 48}
N_LAYERS, N_HEADS, N_NEURONS, HEAD_DIM = 3, 4, 48, 8


class Source:
    """Batches in a list."""

    def __init__(self, *batches):
        self.batches, self.asked = batches, []

    def __len__(self):
        return len(self.batches)

    def micro_batches(self, step):
        self.asked.append(step)
        return (self.batches[step % len(self.batches)],)


def source(n_batches=3, n_labels=3):
    return Source(*(tiny_batch(seed, n_labels=n_labels) for seed in range(n_batches)))


def tiny(family="bert", **options):
    return tiny_model(family, dtype=torch.float64, **SIZES, **options)


def random_importance(seed=0):
    generator = torch.Generator().manual_seed(seed)
    heads, neurons = (torch.rand(N_LAYERS, n, generator=generator) for n in (N_HEADS, N_NEURONS))
    return Importance(heads, neurons, "random")


def linears(model, layer):
    """The linear maps of one layer: query, key, value, attention output, intermediate, output."""
    family = family_of(model.config.model_type)
    module = layers_of(model, family)[layer]
    return [module.get_submodule(projection.path) for projection in family.projections]


# --- Importance


def test_order_is_descending_and_equal_ones_keep_their_place():
    importance = Importance(torch.tensor([[1.0, 3.0, 3.0, 2.0]]), torch.tensor([[0.0, 0.0, 5.0, 0.0, 5.0]]), "total")
    heads, neurons = importance.order()
    assert heads.tolist() == [[1, 2, 3, 0]]
    assert neurons.tolist() == [[2, 4, 0, 1, 3]]


@pytest.mark.parametrize(
    ("heads", "neurons"),
    [((2, 4), (3, 8)), ((4,), (2, 8)), ((2, 4), (8,))],
)
def test_tables_that_do_not_fit_each_other_are_refused(heads, neurons):
    with pytest.raises(SettingError, match=r"must be \(layers, heads\) and \(layers, neurons\)"):
        Importance(torch.zeros(heads), torch.zeros(neurons), "total")


def test_numbers_without_an_order_are_refused():
    with pytest.raises(SettingError, match="NaN or infinity"):
        Importance(torch.zeros(2, 4), torch.full((2, 8), torch.nan), "total")


def test_saved_importance_is_read_back(tmp_path):
    saved = random_importance()
    saved.save(tmp_path / "importance.safetensors")
    read = Importance.load(tmp_path / "importance.safetensors")
    assert torch.equal(read.heads, saved.heads)
    assert torch.equal(read.neurons, saved.neurons)
    assert read.scores == "random"


def damaged(kind, path):
    random_importance().save(path)
    if kind == "missing":
        path.unlink()
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:-10])
    elif kind == "of another kind":
        path.write_bytes(b"{}")
    elif kind == "of a later format":
        path.write_bytes(path.read_bytes().replace(b'"format_version":"1"', b'"format_version":"9"'))
    elif kind == "without neurons":
        path.write_bytes(path.read_bytes().replace(b'"neurons"', b'"neurone"'))
    elif kind == "flipped":
        path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))
    else:
        Importance(torch.zeros(1, 1), torch.zeros(1, 1), "total").save(path)
        path.write_bytes(path.read_bytes()[:-8] + b"\x00\x00\xc0\x7f" * 2)  # NaN


@pytest.mark.parametrize(
    "kind", ["missing", "truncated", "of another kind", "of a later format", "without neurons", "flipped", "of NaN"]
)
def test_a_damaged_file_is_refused_in_one_line(kind, tmp_path):
    path = tmp_path / "importance.safetensors"
    damaged(kind, path)
    with pytest.raises(ModelFileError, match=r"importance\.safetensors is no sound file of importance") as caught:
        Importance.load(path)
    assert "\n" not in str(caught.value)


# --- rewire and permute


def test_rewiring_puts_the_highest_score_first():
    elastic = ElasticModel(tiny())
    before = copy.deepcopy(elastic.model)
    importance = random_importance()
    rewire(elastic, importance)
    for layer in range(N_LAYERS):
        old, new = linears(before, layer), linears(elastic.model, layer)
        for place, head in enumerate(importance.heads[layer].argsort(descending=True)):
            to, origin = (slice(i * HEAD_DIM, (i + 1) * HEAD_DIM) for i in (place, int(head)))
            for index in range(3):
                assert torch.equal(new[index].weight[to], old[index].weight[origin])
                assert torch.equal(new[index].bias[to], old[index].bias[origin])
            assert torch.equal(new[3].weight[:, to], old[3].weight[:, origin])
        for place, neuron in enumerate(importance.neurons[layer].argsort(descending=True)):
            assert torch.equal(new[4].weight[place], old[4].weight[neuron])
            assert torch.equal(new[4].bias[place], old[4].bias[neuron])
            assert torch.equal(new[5].weight[:, place], old[5].weight[:, neuron])


def test_parameters_stay_the_same_objects_so_that_views_follow():
    elastic = ElasticModel(tiny())
    batch = tiny_batch()
    narrow = elastic.at(Subnet(0.5))
    objects = {name: (parameter, parameter.data_ptr()) for name, parameter in elastic.model.named_parameters()}
    with torch.no_grad():
        before = narrow(**batch.inputs).logits
        rewire(elastic, random_importance())
        after = narrow(**batch.inputs).logits
        fresh = ElasticModel(copy.deepcopy(elastic.model)).at(Subnet(0.5))(**batch.inputs).logits
    for name, parameter in elastic.model.named_parameters():
        assert parameter is objects[name][0]
        assert parameter.data_ptr() == objects[name][1]
        assert parameter.requires_grad
    assert torch.equal(after, fresh)
    assert not torch.allclose(after, before)


def test_importance_of_another_shape_is_refused():
    elastic = ElasticModel(tiny())
    before = copy.deepcopy(elastic.model.state_dict())
    other = Importance(torch.zeros(N_LAYERS, 8), torch.zeros(N_LAYERS, N_NEURONS), "total")
    with pytest.raises(SettingError, match=r"\(3, 8, 48\) does not fit a model of \(3, 4, 48\)"):
        rewire(elastic, other)
    assert all(torch.equal(before[name], weight) for name, weight in elastic.model.state_dict().items())


@pytest.mark.parametrize(
    ("heads", "neurons"),
    [
        (torch.zeros(N_LAYERS, N_HEADS, dtype=torch.long), torch.arange(N_NEURONS).expand(N_LAYERS, -1)),
        (torch.arange(N_HEADS).flip(0).expand(N_LAYERS, -1), torch.arange(N_NEURONS - 1).expand(N_LAYERS, -1)),
        (torch.arange(N_HEADS).flip(0).expand(N_LAYERS, -1), torch.arange(1, N_NEURONS + 1).expand(N_LAYERS, -1)),
    ],
    ids=["a head twice", "a neuron too few", "neurons from 1"],
)
def test_orders_that_are_no_permutation_change_nothing(heads, neurons):
    elastic = ElasticModel(tiny())
    before = copy.deepcopy(elastic.model.state_dict())
    with pytest.raises(SettingError, match="every number from 0 to"):
        permute(elastic, heads, neurons)
    assert all(torch.equal(before[name], weight) for name, weight in elastic.model.state_dict().items())


class FusedLayer(nn.Module):
    """Query, key and value in one linear, and a gated feed-forward whose two inputs are in one linear."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(6, 18), nn.Linear(6, 6)
        self.into, self.back = nn.Linear(6, 10), nn.Linear(5, 6)

    def forward(self, states):
        query, key, value = (part.unflatten(-1, (3, 2)).transpose(1, 2) for part in self.qkv(states).chunk(3, -1))
        states = states + self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        activated, gate = self.into(states).chunk(2, -1)
        return states + self.back(F.gelu(activated) * gate)


def test_fused_and_gated_weights_are_permuted_block_by_block():
    torch.manual_seed(0)
    base = nn.Module()
    base.layers = nn.ModuleList([FusedLayer(), FusedLayer()]).double()
    projections = (
        Projection("qkv", rows="heads", parts=3),
        Projection("out", columns="heads"),
        Projection("into", rows="neurons", parts=2),
        Projection("back", columns="neurons"),
    )
    fused = SimpleNamespace(
        model=SimpleNamespace(base_model=base),
        family=Family("fused", "Fused", "layers", projections, "gated"),
        shape=EncoderShape(n_layers=2, n_heads=3, head_dim=2, hidden=6, n_neurons=5, feed_forward="gated"),
    )
    states = torch.randn(2, 4, 6, dtype=torch.float64)
    before, weight = nn.Sequential(*base.layers)(states), base.layers[0].qkv.weight.clone()
    permute(fused, torch.tensor([[2, 0, 1], [1, 2, 0]]), torch.tensor([[4, 2, 0, 1, 3], [1, 0, 4, 3, 2]]))
    assert torch.equal(base.layers[0].qkv.weight[6:8], weight[10:12])  # the first head of the keys was their third
    torch.testing.assert_close(nn.Sequential(*base.layers)(states), before, rtol=0, atol=1e-12)


# --- score


def plain_gradients(model, batch):
    """Weight times gradient of the mean loss, summed over the weights of each head and neuron, with plain backward.

    (layers, heads) by the outgoing weights, (layers, neurons) by the outgoing ones, and by the incoming ones with bias.
    It adds to `.grad`, as a model whose gradients nobody zeroes does.
    """
    F.cross_entropy(model(**batch.inputs).logits, batch.labels).backward()
    heads, outgoing, incoming = [], [], []
    for layer in range(N_LAYERS):
        *_, attention, into, out = linears(model, layer)
        by_feature = (attention.weight * attention.weight.grad).sum(0)
        heads.append(by_feature.reshape(N_HEADS, HEAD_DIM).sum(1))
        outgoing.append((out.weight * out.weight.grad).sum(0))
        incoming.append((into.weight * into.weight.grad).sum(1) + into.bias * into.bias.grad)
    return [torch.stack(parts).detach() for parts in (heads, outgoing, incoming)]


def assert_same_scores(got, heads, neurons):
    torch.testing.assert_close(got.heads.double(), heads, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(got.neurons.double(), neurons, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_per_batch_is_the_absolute_value_of_each_batch_on_its_own(family):
    model, batches = tiny(family), source()
    heads, neurons = 0, 0
    for batch in batches.batches:
        model.zero_grad()
        of_heads, outgoing, _ = plain_gradients(model, batch)
        heads = heads + len(batch) * of_heads.abs()
        neurons = neurons + len(batch) * outgoing.abs()
    model.zero_grad()
    assert_same_scores(score(model, batches, scores="per-batch"), heads, neurons)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_per_example_is_per_batch_with_one_row_in_each_batch(family):
    model, batches = tiny(family), source()
    rows = Source(
        *(
            Batch({name: tensor[[i]] for name, tensor in batch.inputs.items()}, batch.labels[[i]], batch.ids[[i]])
            for batch in batches.batches
            for i in range(len(batch))
        )
    )
    alone = score(model, rows, scores="per-batch")
    assert_same_scores(score(model, batches), alone.heads.double(), alone.neurons.double())


def test_total_is_one_absolute_value_and_published_adds_running_ones_from_both_sides():
    model, batches = tiny(), source()
    heads, neurons = 0, 0
    for batch in batches.batches:  # gradients gather: nobody zeroes them
        total = plain_gradients(model, batch)
        heads = heads + total[0].abs()
        neurons = neurons + total[1].abs() + total[2].abs()
    model.zero_grad()
    assert_same_scores(score(model, batches, scores="published"), heads, neurons)
    n_rows = len(batches.batches[0])
    assert_same_scores(score(model, batches, scores="total"), n_rows * total[0].abs(), n_rows * total[1].abs())
    assert not torch.allclose(score(model, batches, scores="per-batch").heads.double(), n_rows * heads, rtol=0.01)


def test_with_one_batch_the_published_score_of_heads_is_per_batch():
    model, batches = tiny(), source(1)
    published, per_batch = (score(model, batches, scores=name) for name in ("published", "per-batch"))
    torch.testing.assert_close(published.heads * len(batches.batches[0]), per_batch.heads)
    assert not torch.allclose(published.neurons * len(batches.batches[0]), per_batch.neurons, rtol=0.01)


@pytest.mark.parametrize("scores", SCORES)
def test_scoring_leaves_the_model_as_it_is(scores):
    model = tiny(dropout=0.1).train()
    frozen = model.get_parameter("bert.embeddings.word_embeddings.weight").requires_grad_(False)
    weights, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    score(model, source(), scores=scores)
    assert all(part.training for part in model.modules())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [parameter for parameter in model.parameters() if not parameter.requires_grad] == [frozen]
    assert all(torch.equal(weights[name], weight) for name, weight in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_mode_dropout_frozen_weights_and_no_grad_do_not_matter():
    expected = score(tiny(), source())
    model = tiny(dropout=0.5).train().requires_grad_(False)
    with torch.no_grad():
        got = score(ElasticModel(model), source())
    assert torch.equal(got.heads, expected.heads)
    assert torch.equal(got.neurons, expected.neurons)
    assert got.scores == "per-example"
    assert got.heads.shape == (N_LAYERS, N_HEADS)
    assert got.neurons.shape == (N_LAYERS, N_NEURONS)
    assert got.heads.dtype == got.neurons.dtype == torch.float32


def padded(batch, n_more):
    values = {"input_ids": 1, "attention_mask": 0, "token_type_ids": 0}
    inputs = {name: F.pad(tensor, (0, n_more), value=values[name]) for name, tensor in batch.inputs.items()}
    return Batch(inputs, batch.labels, batch.ids)


def test_padding_does_not_matter():
    model, batches = tiny(), source()
    longer = score(model, Source(*(padded(batch, 7) for batch in batches.batches)))
    expected = score(model, batches)
    assert_same_scores(longer, expected.heads.double(), expected.neurons.double())


def test_a_head_and_a_neuron_that_do_nothing_score_zero():
    model = tiny()
    *_, attention, _, out = linears(model, 1)
    with torch.no_grad():
        attention.weight[:, HEAD_DIM : 2 * HEAD_DIM] = 0
        out.weight[:, 7] = 0
    found = score(model, source())
    assert (found.heads == 0).nonzero().tolist() == [[1, 1]]
    assert (found.neurons == 0).nonzero().tolist() == [[1, 7]]


@pytest.mark.parametrize("n_labels", [1, 3], ids=["regression", "classes"])
@pytest.mark.parametrize("scores", SCORES)
def test_the_models_own_logits_need_no_labels(scores, n_labels):
    model = tiny(n_labels=n_labels)
    unlabelled = Source(*(Batch(batch.inputs, None, batch.ids) for batch in source(n_labels=n_labels).batches))
    found = score(model, unlabelled, scores=scores, targets="logits")
    assert (found.heads > 0).all()
    assert (found.neurons > 0).all()


def test_regression_is_scored_by_its_squared_error():
    model, batch = tiny(n_labels=1), tiny_batch(n_labels=1)
    (model(**batch.inputs).logits.flatten() - batch.labels).square().sum().backward()
    weights = torch.stack([linears(model, layer)[3].weight for layer in range(N_LAYERS)])
    gradients = torch.stack([linears(model, layer)[3].weight.grad for layer in range(N_LAYERS)])
    expected = (weights * gradients).sum(1).reshape(N_LAYERS, N_HEADS, HEAD_DIM).sum(-1).abs().detach()
    got = score(model, Source(batch), scores="total").heads.double()
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-7)


def test_number_of_batches(monkeypatch):
    monkeypatch.setitem(vars(sys.modules["dynabert.rewire"]), "MAX_BATCHES", 2)
    model = tiny_model("bert", **SIZES)
    for asked, steps in ((None, [0, 1]), (1, [0]), (5, [0, 1, 2, 3, 4])):
        batches = source(4)
        score(model, batches, n_batches=asked)
        assert batches.asked == steps
    batches = source(1)
    score(model, batches)
    assert batches.asked == [0]


UNLABELLED = Batch(tiny_batch().inputs, None, tiny_batch().ids)


@pytest.mark.parametrize(
    ("batches", "options", "error", "message"),
    [
        (source(), {"scores": "per-batches"}, SettingError, "did you mean 'per-batch'"),
        (source(), {"targets": "teacher"}, SettingError, "known: labels, logits"),
        (source(), {"n_batches": 0}, SettingError, "n_batches 0 must be 1 or more"),
        (Source(UNLABELLED), {}, SettingError, "no labels to score with; give labels, or targets='logits'"),
        (Source(), {}, DataError, "no batches to score with"),
    ],
)
def test_wrong_settings_say_what_is_allowed(batches, options, error, message):
    with pytest.raises(error, match=message):
        score(tiny(), batches, **options)


def test_a_model_without_a_task_head_is_refused():
    with pytest.raises(SettingError, match="BertModel has no logits to score"):
        score(tiny().base_model, source())


def test_a_broken_model_is_refused():
    model = tiny()
    with torch.no_grad():
        linears(model, 0)[0].weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        score(model, source())


def test_orders_for_comparison():
    importance = random_importance()
    assert reordered(importance, "importance", seed=0).order()[0].equal(importance.order()[0])
    backwards = reordered(importance, "reversed", seed=0).order()
    assert backwards[0].equal(importance.order()[0].flip(1)) and backwards[1].equal(importance.order()[1].flip(1))
    present = reordered(importance, "as-is", seed=0).order()
    assert present[1].equal(torch.arange(N_NEURONS).expand(N_LAYERS, -1))
    drawn = [reordered(importance, "random", seed=seed).order()[1] for seed in (0, 0, 1)]
    assert drawn[0].equal(drawn[1]) and not drawn[0].equal(drawn[2])
    assert not drawn[0][0].equal(drawn[0][1]), "each layer has an order of its own"
    assert len(ORDERS) == 4
