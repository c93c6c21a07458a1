"""What may be searched: prices, budgets that are never broken, seeds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynabert.errors import SettingError
from dynabert.search.space import Choice, Price, Space
from dynabert.subnet import EncoderShape, LayerSlice, Subnet, SubnetGrid, encoder_flops

SHAPE = EncoderShape(n_layers=6, n_heads=12, head_dim=32, hidden=384, n_neurons=1536)
PATTERNS = ((0, 1, 2, 3, 4, 5), (0, 1, 2, 4), (0, 2, 4))


def flops(slices: tuple[LayerSlice, ...]) -> float:
    return encoder_flops(SHAPE, slices)


FULL = flops(Subnet().slices(SHAPE))


def space(share: float = 0.25, shape: EncoderShape = SHAPE) -> Space:
    return Space(shape, PATTERNS, Price.of(flops, shape), share * FULL)


def test_prices_are_exact() -> None:
    price = Price.of(lambda slices: 7 + 5 * len(slices) + flops(slices), SHAPE)
    slices = (LayerSlice(0, 3, 160), LayerSlice(2, 12, 16), LayerSlice(5, 1, 1536))
    assert price(slices) == 7 + 5 * 3 + flops(slices)
    assert (price.base, price.layer) == (7, 5)


choices = st.builds(
    Choice,
    st.integers(0, 2),
    st.tuples(*[st.integers(1, 12)] * 6),
    st.tuples(*[st.integers(1, 32)] * 6),
)


@settings(max_examples=60, deadline=None)
@given(choices, st.floats(0.06, 1))
def test_every_choice_is_made_to_fit_and_uses_the_budget(choice: Choice, share: float) -> None:
    tried = space(share)
    slices = tried.fitted(choice).slices(SHAPE)
    assert tuple(part.layer for part in slices) == PATTERNS[choice.pattern]
    assert flops(slices) <= tried.budget
    assert all(part.n_neurons % 16 == 0 for part in slices)
    left = tried.budget - flops(slices)
    room = any(part.n_neurons < SHAPE.n_neurons for part in slices)
    assert left < tried.step * tried.price.neuron or not room


def test_a_choice_that_fits_exactly_stays_as_it_is() -> None:
    for subnet in SubnetGrid():
        slices = subnet.slices(SHAPE)
        tried = space(flops(slices) / FULL)
        choice = tried.choice_of(slices)
        assert choice is not None and tried.fitted(choice).slices(SHAPE) == slices
    assert space().choice_of((LayerSlice(1, 12, 1536),)) is None


def test_only_proportions_count() -> None:
    once = Choice(1, (2, 4, 4, 1, 2, 1), (4, 8, 8, 1, 4, 1))
    twice = Choice(1, (4, 8, 8, 1, 4, 1), (8, 16, 16, 1, 8, 1))
    assert space().fitted(once) == space().fitted(twice)


def test_even_choices_trade_heads_for_neurons_within_the_budget() -> None:
    tried = space()
    made = [tried.fitted(choice).slices(SHAPE) for choice in tried.even_choices()]
    deep = {slices[0].n_heads: slices for slices in made if len(slices) == 6}
    assert set(deep) == {1, 2, 3, 4, 5, 6, 7}  # eight heads alone cost more than a quarter of the network
    for n_heads, slices in deep.items():
        assert {part.n_heads for part in slices} == {n_heads}
        assert max(part.n_neurons for part in slices) - min(part.n_neurons for part in slices) <= tried.step
    assert deep[5][0].n_neurons < deep[4][0].n_neurons < deep[3][0].n_neurons


def test_a_layer_that_matters_more_gets_more() -> None:
    heads, neurons = np.ones((6, 12)), np.ones((6, 1536))
    heads[2], neurons[2] = 5, 5
    tried = space()
    guided = [tried.fitted(choice).slices(SHAPE) for choice in tried.guided_choices(heads, neurons)]
    as_they_are = [slices for slices in guided[: len(guided) // 2] if len(slices) == 6]
    for slices in as_they_are:
        assert slices[2].n_heads == max(part.n_heads for part in slices)
        assert slices[2].n_neurons == max(part.n_neurons for part in slices)
    assert any(slices[2].n_heads > slices[3].n_heads for slices in as_they_are)


def test_patterns_too_deep_for_the_budget_are_left_out() -> None:
    assert space(0.03).patterns == ((0, 2, 4),)
    with pytest.raises(SettingError, match="the smallest Subnet costs"):
        space(0.001)
