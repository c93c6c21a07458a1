"""On real data: what is chosen on was not trained on, not even in part."""

import time

import pytest

from dynabert.data import Rows, load_task
from dynabert.overlap import MIN_WORDS, words_of
from dynabert.tasks import TASKS


@pytest.fixture(scope="module")
def sst2(data_dir):
    start = time.process_time()
    roles = load_task(TASKS["sst2"], data_dir)
    return roles, time.process_time() - start


def spans(text: str, at_most: int) -> set[tuple[str, ...]]:
    """Every run of words of a text that is long enough to count, and the whole of it."""
    words = words_of(text)
    lengths = range(MIN_WORDS[1], min(len(words), at_most) + 1)
    return {words} | {words[start : start + n] for n in lengths for start in range(len(words) - n + 1)}


def texts_inside(rows: Rows, others: Rows) -> list[str]:
    """The texts of some rows that hold, or are, a text of the others."""
    known = {words_of(text) for text in others.texts[0]}
    longest = max(map(len, known))
    return [text for text in rows.texts[0] if not known.isdisjoint(spans(text, longest))]


def test_sst2_is_split_in_seconds_and_little_is_set_aside(sst2):
    roles, seconds = sst2
    assert len(roles.select) == 2000
    assert len(roles.train) + len(roles.select) + roles.n_set_aside == 67_349
    assert roles.n_set_aside < 200
    assert seconds < 20  # of the processor; about 3 were measured


def test_no_sst2_text_of_one_role_stands_inside_one_of_the_other(sst2):
    roles, _ = sst2
    assert texts_inside(roles.train, roles.select) == []
    assert texts_inside(roles.select, roles.train) == []


def test_a_random_split_of_sst2_would_overlap_nearly_everywhere(sst2):
    train = sst2[0].train
    rows = range(0, len(train), 33)
    overlapping = texts_inside(train.take(rows), train.take(set(range(len(train))) - set(rows)))
    assert len(overlapping) > 0.5 * len(rows)


def test_the_premises_of_mnli_stay_together(data_dir):
    roles = load_task(TASKS["mnli"], data_dir, limit=15_000)
    assert [len(rows) for rows in (roles.train, roles.select, roles.validation)] == [15_000, 2000, 9815]
    assert set(roles.select.labels or ()) == {0, 1, 2}
    train, select = (
        {words_of(text) for column in rows.texts for text in column if len(words_of(text)) >= MIN_WORDS[2]}
        for rows in (roles.train, roles.select)
    )
    assert train.isdisjoint(select)
