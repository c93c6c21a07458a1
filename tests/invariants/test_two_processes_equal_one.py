"""Two processes train the network that one trains: the same rows in every step, the same weights after fifty of them.

In float64 without dropout the weights agree to 1e-9, whether the one process takes a step's rows in one piece or
accumulates two; with dropout, or with padding counted in, the micro-batches matter, so only the latter. Two real gloo
processes; they run with every collective that pickles forbidden.
"""

import pytest
import torch
from ranks import TESTS, start_ranks, wait_for
from split_training import CASES, outcome, read_outcome

SAME_IN_ONE_PIECE = ("sandwich", "depth", "labels")


@pytest.fixture(scope="module", params=[4, pytest.param(50, marks=pytest.mark.slow)], ids=lambda n: f"{n}-steps")
def n_steps(request):
    return request.param


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, n_steps):
    folder = tmp_path_factory.mktemp("ranks")
    for code, said in wait_for(start_ranks(TESTS / "split_training.py", folder, n_steps), timeout_s=600):
        assert code == 0, said
    return {name: [read_outcome(folder, name, rank) for rank in range(2)] for name in CASES}


def assert_same_training(got, expected, n_steps):
    for name, tensor in expected.tensors.items():
        # Importance and logits are float32.
        tolerance = 1e-9 if tensor.dtype == torch.float64 else 1e-6 * float(tensor.abs().max())
        assert (got.tensors[name] - tensor).abs().max() <= tolerance, name
    assert got.scores == expected.scores and len(got.scores) >= 4
    assert len(got.losses) == n_steps
    for mine, theirs in zip(got.losses, expected.losses, strict=True):
        assert mine.keys() == theirs.keys()
        for subnet, terms in theirs.items():
            assert mine[subnet] == pytest.approx(terms, rel=1e-9), subnet


@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_one_that_accumulates_twice(ranks, n_steps, name):
    one = outcome(name, n_steps=n_steps, accumulate=2)
    assert [first + second for first, second in zip(*(rank.ids for rank in ranks[name]), strict=True)] == one.ids
    assert_same_training(ranks[name][0], one, n_steps)


@pytest.mark.parametrize("name", SAME_IN_ONE_PIECE)
def test_two_processes_equal_one_that_takes_its_rows_in_one_piece(ranks, n_steps, name):
    one = outcome(name, n_steps=n_steps)
    for step, (first, second) in enumerate(zip(*(rank.ids for rank in ranks[name]), strict=True)):
        assert sorted(first[0] + second[0]) == sorted(one.ids[step][0])
    assert_same_training(ranks[name][0], one, n_steps)


@pytest.mark.parametrize("name", CASES)
def test_both_ranks_end_with_the_same_bits(ranks, name):
    first, second = ranks[name]
    assert all(torch.equal(tensor, second.tensors[key]) for key, tensor in first.tensors.items())
    assert first.scores == second.scores and first.losses == second.losses


def test_predictions_do_not_depend_on_the_number_of_ranks(ranks, n_steps):
    alone = outcome("labels", n_steps=n_steps)
    assert torch.equal(ranks["labels"][1].tensors["logits"], alone.tensors["logits"])
