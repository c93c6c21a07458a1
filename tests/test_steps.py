"""Steps of a fixed number of tokens; those of a fixed number of rows are tested with the batches."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dynabert.steps import Steps


def planned(lengths, parts, max_tokens, **options):
    return Steps(np.array(lengths), parts=parts, seed=3, max_tokens=max_tokens, **options)


def epoch_lengths(steps, n_epochs, n_rows):
    """Steps of each epoch, found by counting rows; every row must come once before any comes again."""
    found, step = [], 0
    for _ in range(n_epochs):
        seen, first = [], step
        while len(seen) < n_rows:
            seen += [row for part in steps.rows(step) for row in part.tolist()]
            step += 1
        assert sorted(seen) == list(range(n_rows))
        found.append(step - first)
    return found


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=150),
    st.integers(1, 5),
    st.integers(0, 60),
    st.booleans(),
)
@settings(deadline=None)
def test_no_part_has_more_tokens_or_no_rows_and_every_row_comes_once_in_every_epoch(lengths, parts, more, shuffle):
    parts = min(parts, len(lengths))
    max_tokens = max(lengths) * min(2, parts) + more
    steps = planned(lengths, parts, max_tokens, shuffle=shuffle)
    n_steps = epoch_lengths(steps, 3, len(lengths))
    assert len(steps) == n_steps[0]
    for step in range(sum(n_steps)):
        dealt = steps.rows(step)
        assert len(dealt) == parts
        for rows in dealt:
            assert len(rows) >= 1 and len(rows) * max(lengths[row] for row in rows) <= max_tokens


def test_a_step_is_the_same_whatever_was_asked_before():
    lengths = np.random.default_rng(0).integers(1, 60, 3000)
    used = planned(lengths, 2, 200)
    n_steps = epoch_lengths(used, 3, len(lengths))
    assert len(set(n_steps)) > 1, "epochs of different lengths, or the test shows nothing"
    for step in (0, n_steps[0] - 1, n_steps[0], sum(n_steps) - 1, 5):
        fresh = planned(lengths, 2, 200).rows(step)
        assert [rows.tolist() for rows in fresh] == [rows.tolist() for rows in used.rows(step)]


def test_the_budget_is_used():
    lengths = np.random.default_rng(0).integers(1, 60, 4000)
    steps = planned(lengths, 2, 1000)
    filled = [len(rows) * lengths[rows].max() for step in range(len(steps)) for rows in steps.rows(step)]
    assert np.mean(filled) > 900
    real = [lengths[rows].sum() for step in range(len(steps)) for rows in steps.rows(step)]
    assert np.mean(real) > 0.95 * np.mean(filled), "rows of similar length stand together"
