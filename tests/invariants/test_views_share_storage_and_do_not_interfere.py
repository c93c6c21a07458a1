"""Views hold no weights of their own, and using one changes nothing for another, in other threads too."""

import functools
import sys
import threading

import pytest
import torch
from helpers import FAMILY_NAMES, tiny_batch, tiny_model

from dynabert.elastic import ElasticModel
from dynabert.precision import TrainingViews
from dynabert.subnet import LayerSlice, Subnet, SubnetGrid

PER_LAYER = Subnet.of_layers(LayerSlice(0, 3, 7), LayerSlice(3, 1, 48))
SUBNETS = (Subnet(), Subnet(0.5), Subnet(0.25, 0.5), Subnet(heads=1, neurons=0.5, depth=0.75), PER_LAYER)


def forward(view, batch, **options):
    with torch.no_grad():
        return view(**batch.inputs, **options)


def name_in_full_model(name, kept):
    """The name that a tensor of a view has in the full model: its layer has another number there."""
    head, mark, rest = name.partition("encoder.layer.")
    if not mark:
        return name
    index, _, tail = rest.partition(".")
    return f"{head}{mark}{kept[int(index)]}.{tail}"


@pytest.mark.parametrize("precision", [None, "fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_every_parameter_and_buffer_is_the_models_own(family, precision):
    elastic = ElasticModel(tiny_model(family))
    parameters, buffers = dict(elastic.model.named_parameters()), dict(elastic.model.named_buffers())
    assert buffers
    source = elastic if precision is None else TrainingViews(elastic, precision=precision)
    for subnet in SUBNETS:
        view = source.at(subnet)
        kept = [part.layer for part in elastic.slices(subnet)]
        names = [name for name, _ in view.named_parameters()]
        layers = {name_in_full_model(name, kept) for name in names}
        dropped = set(range(elastic.shape.n_layers)) - set(kept)
        assert layers == {n for n in parameters if not any(f"encoder.layer.{index}." in n for index in dropped)}
        for name, parameter in view.named_parameters():
            assert parameter is parameters[name_in_full_model(name, kept)], name
            assert parameter.data_ptr() == parameters[name_in_full_model(name, kept)].data_ptr()
        assert {name for name, _ in view.named_buffers()} == buffers.keys()
        for name, buffer in view.named_buffers():
            assert buffer.data_ptr() == buffers[name].data_ptr(), name


def test_low_precision_copies_are_shared_by_all_views():
    elastic = ElasticModel(tiny_model("bert"))
    views = TrainingViews(elastic, precision="bf16")
    query = "bert.encoder.layer.0.attention.self.query"
    copies = {views.at(subnet).get_submodule(query).low_weight.data_ptr() for subnet in SUBNETS}
    assert len(copies) == 1


@pytest.mark.parametrize("full_model_ran_first", [False, True])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_states_and_attentions_are_counted_as_the_views_own(family, full_model_ran_first):
    elastic = ElasticModel(tiny_model(family, attention="eager"))
    batch = tiny_batch()
    n_rows, seq = batch.inputs["input_ids"].shape
    everything = {"output_hidden_states": True, "output_attentions": True}
    if full_model_ran_first:
        forward(elastic.model, batch, **everything)
    for subnet in (*SUBNETS, *reversed(SUBNETS)):
        slices = elastic.slices(subnet)
        got = forward(elastic.at(subnet), batch, **everything)
        assert elastic.at(subnet).config.num_hidden_layers == len(slices)
        assert [state.shape for state in got.hidden_states] == [(n_rows, seq, 64)] * (len(slices) + 1)
        assert [tuple(a.shape) for a in got.attentions] == [(n_rows, part.n_heads, seq, seq) for part in slices]
    got = forward(elastic.model, batch, **everything)
    assert len(got.hidden_states) == elastic.shape.n_layers + 1 and len(got.attentions) == elastic.shape.n_layers


def test_a_view_is_made_once():
    elastic = ElasticModel(tiny_model("bert"))
    assert elastic.at(Subnet(0.5)) is elastic.at(Subnet(width=0.5, depth=1))
    assert elastic.at(Subnet(0.5)) is not elastic.at(Subnet(0.75))
    views = TrainingViews(elastic, precision="bf16")
    assert views.at(Subnet(0.5)) is views.at(Subnet(0.5, 1.0))
    assert views.at(Subnet(0.5)) is not elastic.at(Subnet(0.5))


def test_a_step_on_the_full_model_changes_every_view():
    elastic = ElasticModel(tiny_model("roberta"))
    batch = tiny_batch()
    before = {subnet: forward(elastic.at(subnet), batch).logits for subnet in SUBNETS}
    optimizer = torch.optim.SGD(elastic.model.parameters(), lr=0.1)
    elastic.model(**batch.inputs, labels=batch.labels).loss.backward()
    optimizer.step()
    fresh = elastic.copy()
    for subnet in SUBNETS:
        after = forward(elastic.at(subnet), batch).logits
        assert not torch.allclose(after, before[subnet], atol=1e-4)
        assert torch.equal(after, forward(fresh.at(subnet), batch).logits)


def test_a_step_through_a_view_changes_the_full_model():
    elastic = ElasticModel(tiny_model("bert"))
    batch = tiny_batch()
    before = forward(elastic.model, batch).logits
    view = elastic.at(Subnet(0.25, 0.5))
    optimizer = torch.optim.SGD(view.parameters(), lr=0.1)
    view(**batch.inputs, labels=batch.labels).loss.backward()
    optimizer.step()
    assert not torch.allclose(forward(elastic.model, batch).logits, before, atol=1e-4)


def test_a_copy_shares_nothing():
    elastic = ElasticModel(tiny_model("bert"))
    other = elastic.copy()
    pointers = {tensor.data_ptr() for tensor in (*elastic.model.parameters(), *elastic.model.buffers())}
    assert pointers.isdisjoint(tensor.data_ptr() for tensor in (*other.model.parameters(), *other.model.buffers()))
    assert other.grid == elastic.grid and other.slices(Subnet(0.5, 0.5)) == elastic.slices(Subnet(0.5, 0.5))


def test_modes_of_views_are_their_own():
    elastic = ElasticModel(tiny_model("bert", dropout=0.5))
    quiet, noisy = elastic.at(Subnet(0.5)), elastic.at(Subnet(0.75))
    batch = tiny_batch()
    expected = forward(quiet, batch).logits
    noisy.train()
    assert not quiet.training and not elastic.model.training
    assert torch.equal(forward(quiet, batch).logits, expected)
    assert not any(module.training for module in quiet.modules())


@pytest.fixture
def frequent_switches():
    """Let threads take turns as often as Python can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def run_together(jobs):
    """Run callables in a thread each, started together; an error in one is raised here."""
    barrier, errors = threading.Barrier(len(jobs)), []

    def guarded(job):
        try:
            barrier.wait()
            job()
        except BaseException as error:  # carried over to the main thread
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_two_threads_get_the_answers_they_get_alone(attention, frequent_switches):
    pair = (Subnet(0.25, 0.5), Subnet())
    batches = tuple(tiny_batch(seed, batch=2, seq=seq) for seed, seq in ((1, 7), (2, 9)))
    options = {"output_hidden_states": True, "output_attentions": attention == "eager"}
    model = tiny_model("bert", attention=attention)
    alone = [
        forward(ElasticModel(model).at(subnet), batch, **options) for subnet, batch in zip(pair, batches, strict=True)
    ]
    elastic = ElasticModel(tiny_model("bert", attention=attention))  # its views are taken for the first time in threads

    def job(index):
        def run():
            for _ in range(25):
                got = forward(elastic.at(pair[index]), batches[index], **options)
                assert torch.equal(got.logits, alone[index].logits)
                for name in ("hidden_states", "attentions"):
                    expected = alone[index].get(name) or ()
                    assert len(got.get(name) or ()) == len(expected)
                    assert all(torch.equal(a, b) for a, b in zip(got.get(name) or (), expected, strict=True))

        return run

    run_together([job(0), job(1)])


def test_threads_that_ask_at_once_get_one_view(frequent_switches):
    grid = SubnetGrid((1.0, 0.5), (1.0, 0.5))
    for _ in range(3):
        elastic = ElasticModel(tiny_model("bert"), grid)
        got = [{} for _ in range(4)]

        def take_all(seen, elastic=elastic):
            seen.update((subnet, elastic.at(subnet)) for subnet in grid)

        run_together([functools.partial(take_all, seen) for seen in got])
        for subnet in grid:
            assert len({id(seen[subnet]) for seen in got}) == 1


def test_a_view_taken_while_the_full_model_runs_counts_its_own_states(frequent_switches):
    """transformers hooks a model on its first request for states; a copy made halfway must not be hooked again."""
    batch = tiny_batch(batch=1, seq=3)
    for _ in range(12):
        elastic = ElasticModel(tiny_model("bert", n_layers=8))
        views = []
        run_together(
            [
                functools.partial(forward, elastic.model, batch, output_hidden_states=True),
                lambda elastic=elastic, views=views: views.append(elastic.at(Subnet(0.5))),
            ]
        )
        assert len(forward(views[0], batch, output_hidden_states=True).hidden_states) == 9
