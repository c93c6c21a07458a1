"""Subnets, grids and the arithmetic of what they keep."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynabert.errors import SettingError
from dynabert.subnet import (
    NEURON_STEP,
    EncoderShape,
    LayerSlice,
    Subnet,
    SubnetGrid,
    encoder_flops,
    kept_layers,
    matched_states,
)

BASE = EncoderShape(n_layers=12, n_heads=12, head_dim=64, hidden=768, n_neurons=3072)
quick = settings(deadline=None, max_examples=100)

multipliers = st.floats(min_value=0, max_value=1, exclude_min=True, allow_nan=False)
points = st.builds(Subnet, multipliers, multipliers)
split_points = st.builds(lambda h, n, d: Subnet(heads=h, neurons=n, depth=d), multipliers, multipliers, multipliers)
sizes = st.integers(min_value=1, max_value=10**6)
per_layer = st.dictionaries(
    st.integers(min_value=0, max_value=200), st.tuples(sizes, sizes), min_size=1, max_size=6
).map(lambda layers: Subnet.of_layers(*(LayerSlice(layer, *counts) for layer, counts in sorted(layers.items()))))
subnets = points | split_points | per_layer


@quick
@given(subnets)
def test_the_name_says_everything(subnet):
    again = Subnet.parse(subnet.name)
    assert again == subnet and hash(again) == hash(subnet)
    assert again.name == subnet.name == str(subnet)


@quick
@given(st.tuples(subnets, subnets))
def test_different_subnets_have_different_names(pair):
    assert (pair[0].name == pair[1].name) == (pair[0] == pair[1])


@pytest.mark.parametrize(
    ("subnet", "name"),
    [
        (Subnet(), "w1-d1"),
        (Subnet(0.5, 0.75), "w0.5-d0.75"),
        (Subnet(width=1 / 3), "w0.3333333333333333-d1"),
        (Subnet(heads=1, neurons=0.5, depth=0.75), "h1-n0.5-d0.75"),
        (Subnet.of_layers(LayerSlice(0, 12, 3072), LayerSlice(2, 6, 1536)), "l0h12n3072_l2h6n1536"),
    ],
)
def test_names(subnet, name):
    assert subnet.name == name
    assert Subnet.parse(name) == subnet


def test_integers_and_floats_make_the_same_subnet():
    assert Subnet(1, 1) == Subnet() == Subnet(1.0, 1.0)
    assert {Subnet(1), Subnet(1.0)} == {Subnet()}


@pytest.mark.parametrize(
    "name",
    ["", "w0.5", "d0.5", "w0.5-d0.75 ", "w0.5-d0.75\n", "w0,5-d1", "h1-d1", "h1-n1", "w-1-d1", "l0h1", "l0h1n1_"],
)
def test_what_is_not_a_name_is_refused(name):
    with pytest.raises(SettingError, match=r"is not the name of a Subnet; write it like w0\.5-d0\.75"):
        Subnet.parse(name)


@pytest.mark.parametrize("name", ["w0-d1", "w2-d1", "w1-d1.5", "l2h1n1_l1h1n1", "l0h0n1", "l0h1n0"])
def test_a_name_of_an_impossible_subnet_is_refused(name):
    with pytest.raises(SettingError):
        Subnet.parse(name)


@pytest.mark.parametrize("value", [0, -0.5, 1.01, float("nan"), float("inf"), True, "0.5"])
@pytest.mark.parametrize("name", ["width", "depth", "heads", "neurons"])
def test_multipliers_are_checked(name, value):
    rest = {"heads": 1, "neurons": 1} if name in ("heads", "neurons") else {}
    with pytest.raises(SettingError, match=rf"{name} .* is outside \(0, 1\]"):
        Subnet(**{**rest, name: value})


@pytest.mark.parametrize(
    "settings_of_subnet",
    [
        {"heads": 1},
        {"neurons": 1},
        {"width": 1, "heads": 1, "neurons": 1},
        {"layers": (LayerSlice(0, 1, 1),), "width": 1},
        {"layers": (LayerSlice(0, 1, 1),), "depth": 0.5},
        {"layers": ()},
        {"layers": (LayerSlice(1, 1, 1), LayerSlice(0, 1, 1))},
        {"layers": (LayerSlice(1, 1, 1), LayerSlice(1, 1, 1))},
        {"layers": (LayerSlice(-1, 1, 1),)},
    ],
)
def test_mixed_and_impossible_forms_are_refused(settings_of_subnet):
    with pytest.raises(SettingError):
        Subnet(**settings_of_subnet)


# Heads and neurons.


@pytest.mark.parametrize(
    ("width", "n_heads"),
    [(1, 12), (0.75, 9), (0.5, 6), (0.25, 3), (0.375, 4), (0.125, 2), (0.625, 8), (0.875, 10), (0.01, 1)],
)
def test_heads_are_rounded_half_to_even_and_neurons_follow_the_heads(width, n_heads):
    assert Subnet(width).counts(BASE) == (n_heads, 256 * n_heads)


@quick
@given(multipliers, st.sampled_from([(768, 12), (1024, 16), (512, 8), (384, 12), (312, 12), (256, 4)]))
def test_counts_stay_inside_the_encoder(width, sizes_of_encoder):
    hidden, n_heads = sizes_of_encoder
    shape = EncoderShape(4, n_heads, hidden // n_heads, hidden, 4 * hidden)
    heads, neurons = Subnet(width).counts(shape)
    assert 1 <= heads <= n_heads and neurons * n_heads == heads * 4 * hidden
    heads, neurons = Subnet(heads=width, neurons=width).counts(shape)
    assert 1 <= heads <= n_heads and 1 <= neurons <= 4 * hidden
    assert neurons % NEURON_STEP == 0 or neurons == 4 * hidden


def test_heads_and_neurons_chosen_apart():
    assert Subnet(heads=1, neurons=0.5).counts(BASE) == (12, 1536)
    assert Subnet(heads=0.25, neurons=1).counts(BASE) == (3, 3072)
    assert Subnet(heads=1, neurons=0.3).counts(BASE) == (12, 928)  # 921.6, to the nearest multiple of 16
    assert Subnet(heads=1, neurons=0.0001).counts(BASE) == (12, 16)
    odd = EncoderShape(2, 2, 4, 8, 20)
    assert Subnet(heads=1, neurons=1).counts(odd) == (2, 20)  # all of them, though no multiple of 16
    assert Subnet(heads=1, neurons=0.99).counts(odd) == (2, 16)
    assert Subnet(heads=1, neurons=0.5).counts(EncoderShape(2, 2, 4, 8, 8)) == (2, 8)  # fewer than 16 in all


def test_uneven_shares_of_neurons_are_cut_down():
    assert Subnet(0.25).counts(EncoderShape(2, 12, 4, 48, 100)) == (3, 25)
    assert Subnet(1 / 12).counts(EncoderShape(2, 12, 4, 48, 100)) == (1, 8)
    assert Subnet().counts(EncoderShape(2, 12, 4, 48, 100)) == (12, 100)


# Layers.


@pytest.mark.parametrize(
    ("depth", "kept", "states"),
    [
        (1.0, range(12), range(1, 13)),
        (0.75, (0, 1, 2, 4, 5, 6, 8, 9, 10), (1, 2, 4, 5, 6, 8, 9, 10, 12)),
        (0.5, (0, 2, 4, 6, 8, 10), (2, 4, 6, 8, 10, 12)),
    ],
)
def test_kept_layers_and_matched_states_of_the_paper(depth, kept, states):
    assert kept_layers(depth, 12) == kept_layers(depth, 12, "paper") == tuple(kept)
    assert matched_states(tuple(kept), 12) == tuple(states)


def test_the_other_depth_rules():
    assert kept_layers(0.75, 12, "text") == (0, 1, 3, 4, 5, 7, 8, 9, 11)  # without the 3rd, 7th and 11th
    assert kept_layers(0.5, 12, "text") == (1, 3, 5, 7, 9, 11)
    for depth in (0.5, 0.75):  # the 3rd, 7th and 11th have no part in what is learnt either
        states = matched_states(kept_layers(depth, 12, "text"), 12, "text")
        assert (
            states
            == matched_states(kept_layers(depth, 12), 12)
            == tuple(kept + 1 for kept in kept_layers(depth, 12, "text"))
        )
    assert kept_layers(0.75, 12, "prefix") == tuple(range(9))
    assert kept_layers(0.75, 6) == (0, 1, 2, 4)  # 4.5 layers round to 4


@quick
@given(multipliers, st.integers(min_value=1, max_value=48), st.sampled_from(["paper", "text", "prefix"]))
def test_kept_layers_are_ascending_distinct_and_there(depth, n_layers, rule):
    kept = kept_layers(depth, n_layers, rule)
    assert len(kept) == max(1, round(depth * n_layers))
    assert list(kept) == sorted(set(kept)) and kept[0] >= 0 and kept[-1] < n_layers
    assert kept_layers(1, n_layers, rule) == tuple(range(n_layers))
    states = matched_states(kept, n_layers, rule)
    assert len(states) == len(kept) and states[-1] == n_layers and list(states) == sorted(set(states))


def test_an_unknown_depth_rule_is_answered_with_the_known_ones():
    with pytest.raises(SettingError, match=r"unknown depth rule 'papr' \(did you mean 'paper'\?\); known: paper, text"):
        kept_layers(0.5, 12, "papr")
    with pytest.raises(SettingError, match="depth 0 is outside"):
        kept_layers(0, 12)


def test_slices_put_layers_and_counts_together():
    assert Subnet(0.5, 0.5).slices(BASE) == tuple(LayerSlice(layer, 6, 1536) for layer in (0, 2, 4, 6, 8, 10))
    assert Subnet(0.5, 0.5).slices(BASE, "prefix") == tuple(LayerSlice(layer, 6, 1536) for layer in range(6))
    chosen = (LayerSlice(1, 12, 3072), LayerSlice(11, 1, 1))
    assert Subnet.of_layers(*chosen).slices(BASE) == chosen


@pytest.mark.parametrize("part", [LayerSlice(12, 1, 1), LayerSlice(0, 13, 1), LayerSlice(0, 1, 3073)])
def test_slices_that_the_encoder_does_not_have_are_refused(part):
    with pytest.raises(SettingError, match="does not fit an encoder of 12 layers, 12 heads and 3072 neurons"):
        Subnet.of_layers(part).slices(BASE)


def test_full_depth_keeps_the_width():
    assert Subnet(0.5, 0.5).at_full_depth() == Subnet(0.5)
    assert Subnet(heads=1, neurons=0.5, depth=0.5).at_full_depth() == Subnet(heads=1, neurons=0.5)
    with pytest.raises(SettingError, match="teacher_width='full'"):
        Subnet.of_layers(LayerSlice(0, 1, 1)).at_full_depth()


# Grids.


def test_a_grid_goes_from_large_to_small_with_one_width_together():
    grid = SubnetGrid((0.5, 1), (0.5, 1.0))
    assert list(grid) == [Subnet(1, 1), Subnet(1, 0.5), Subnet(0.5, 1), Subnet(0.5, 0.5)]
    assert len(grid) == 4 and grid.largest == Subnet() and grid.smallest == Subnet(0.5, 0.5)
    assert grid == SubnetGrid((1, 0.5), (1, 0.5))
    assert list(grid.at_full_depth()) == [Subnet(), Subnet(0.5)]


def test_the_default_grid_is_the_papers():
    assert len(SubnetGrid()) == 12
    assert SubnetGrid().widths == (1.0, 0.75, 0.5, 0.25) and SubnetGrid().depths == (1.0, 0.75, 0.5)
    SubnetGrid().check(BASE)


@pytest.mark.parametrize("axis", ["widths", "depths"])
@pytest.mark.parametrize(
    ("values", "message"),
    [((), "is empty"), ((1, 0), r"outside \(0, 1\]"), ((0.5, 0.5), "names a value twice"), ((1, 1.0), "twice")],
)
def test_impossible_grids_are_refused(axis, values, message):
    with pytest.raises(SettingError, match=message):
        SubnetGrid(**{axis: values})


def test_a_grid_with_two_names_for_one_network_is_refused():
    with pytest.raises(SettingError, match=r"widths 0\.5 and 0\.45 both keep 2 of 4 heads"):
        SubnetGrid((1, 0.5, 0.45)).check(EncoderShape(12, 4, 8, 32, 64))
    with pytest.raises(SettingError, match=r"depths 1 and 0\.9 both keep 4 of 4 layers"):
        SubnetGrid((1,), (1, 0.9)).check(EncoderShape(4, 12, 8, 96, 64))
    SubnetGrid((1,), (0.75, 0.5)).check(EncoderShape(4, 12, 8, 96, 64), "prefix")


# Cost.


def test_operations_of_the_full_encoder():
    per_layer = 2 * 128 * (4 * 768 * 768 + 2 * 768 * 3072 + 2 * 128 * 768)
    assert encoder_flops(BASE, Subnet().slices(BASE)) == 12 * per_layer == 22_347_251_712
    gated = EncoderShape(1, 2, 4, 8, 16, "gated")
    assert encoder_flops(gated, (LayerSlice(0, 1, 16),), seq_len=3) == 2 * 3 * (4 * 8 * 4 + 3 * 8 * 16 + 2 * 3 * 4)
