"""What every training loop has in a step."""

import pytest
import torch
from torch import nn

from dynabert.stepping import adamw, clip, learning_rate, seeded, take


def test_the_rate_rises_to_the_peak_and_falls_towards_zero():
    rates = [learning_rate(step, n_steps=10, peak=2.0, warmup=0.2) for step in range(10)]
    assert rates[:3] == [1.0, 2.0, 2.0] and rates[-1] == 2.0 / 8
    assert [learning_rate(step, n_steps=4, peak=1.0) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]


@pytest.mark.parametrize(("limit", "norm"), [(1.0, 1.0), (10.0, 5.0)])
def test_gradients_are_clipped_together_and_the_norm_before_is_told(limit, norm):
    weights = [nn.Parameter(torch.zeros(1)) for _ in range(3)]
    weights[0].grad, weights[1].grad = torch.tensor([3.0]), torch.tensor([4.0])
    assert clip(iter(weights), limit) == 5.0
    assert float(weights[0].grad) == pytest.approx(3 * norm / 5, rel=1e-5)
    assert float(weights[1].grad) == pytest.approx(4 * norm / 5, rel=1e-5)
    assert weights[2].grad is None


def test_a_step_is_taken_at_the_rate_that_is_given():
    weight = nn.Parameter(torch.zeros(1))
    weight.grad = torch.ones(1)
    take(adamw([weight], lr=1.0, weight_decay=0.0), 0.25)
    assert float(weight.detach()) == pytest.approx(-0.25)


def test_a_seeded_block_repeats_and_leaves_the_generator_alone():
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    first = torch.rand(1)
    with seeded(torch.device("cpu"), 3, "dropout", 7):
        inside = torch.rand(2)
    with seeded(torch.device("cpu"), 3, "dropout", 7):
        assert torch.equal(inside, torch.rand(2))
    with seeded(torch.device("cpu"), 3, "dropout", 8):
        assert not torch.equal(inside, torch.rand(2))
    torch.manual_seed(1)
    torch.rand(1)
    assert torch.equal(torch.cat([first, torch.rand(1)]), expected)
