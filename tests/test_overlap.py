import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynabert.errors import DataError, SettingError
from dynabert.overlap import MIN_WORDS, overlap_free_split, words_of

# Three different words, so that texts often stand inside each other.
TEXT = st.lists(st.sampled_from("abc"), min_size=1, max_size=9).map(" ".join)


def overlap(left, right):
    """Whether one text stands inside the other, in the slow and plain way."""
    left, right = (f" {' '.join(words_of(text))} " for text in (left, right))
    return left in right or right in left


def split_or_none(texts, labels, size, seed=0):
    try:
        return overlap_free_split(texts, labels, size=size, seed=seed)
    except DataError:
        return None


def n_words(text):
    return len(words_of(text))


@given(st.lists(TEXT, min_size=6, max_size=40), st.integers(0, 3))
@settings(deadline=None)
def test_no_selected_text_stands_inside_a_training_text_or_holds_one(texts, seed):
    split = split_or_none([texts], [0] * len(texts), 3, seed)
    if split is None:
        return
    for i in split.select:
        for j in split.train:
            assert texts[i] != texts[j]
            if min(n_words(texts[i]), n_words(texts[j])) >= MIN_WORDS[1]:
                assert not overlap(texts[i], texts[j])
    assert len(split.select) <= 3
    assert sorted(split.train + split.select + split.set_aside) == list(range(len(texts)))


@given(st.lists(st.tuples(TEXT, TEXT), min_size=6, max_size=25), st.integers(0, 3))
@settings(deadline=None)
def test_no_column_of_a_selected_pair_overlaps_with_one_of_a_training_pair(pairs, seed):
    columns = tuple(map(list, zip(*pairs, strict=True)))
    # Only the first attempt promises it for both columns; a fallback is announced, see below.
    logger = logging.getLogger("dynabert")
    announced = []
    handler = logging.Handler()
    handler.emit = announced.append
    logger.addHandler(handler)
    try:
        split = split_or_none(columns, [0] * len(pairs), 3, seed)
    finally:
        logger.removeHandler(handler)
    if split is None or announced:
        return
    assert split.set_aside == []
    for i in split.select:
        for j in split.train:
            assert [words_of(text) for text in pairs[i]] != [words_of(text) for text in pairs[j]]
            for left in pairs[i]:
                for right in pairs[j]:
                    if min(n_words(left), n_words(right)) >= MIN_WORDS[2]:
                        assert not overlap(left, right)


def test_case_and_punctuation_do_not_hide_an_overlap():
    texts = ["A truly GOOD film!", "... truly good film", "one two three", "four five six", "seven eight nine", "ten"]
    for seed in range(10):
        split = overlap_free_split([texts], [0] * 6, size=3, seed=seed)
        assert (0 in split.select) == (1 in split.select)


def test_texts_of_nothing_but_symbols_are_told_apart():
    assert words_of("Hm, :-)") == ("hm",)
    assert words_of(":-) !") == (":-)", "!")


def test_empty_texts_are_texts_that_equal_each_other():
    texts = ["", "", *(f"row number {i}" for i in range(20))]
    for seed in range(10):
        split = overlap_free_split([texts], [0] * 22, size=5, seed=seed)
        assert (0 in split.select) == (1 in split.select)


def test_a_phrase_of_two_sentences_is_set_aside_when_they_part():
    shared = "a very good film"
    texts = [f"this is {shared}", f"that was {shared} indeed", shared, *(f"number {i} is fine" for i in range(20))]
    splits = [overlap_free_split([texts], [0] * len(texts), size=5, seed=seed) for seed in range(30)]
    parted = [split for split in splits if (0 in split.select) != (1 in split.select)]
    assert parted
    assert all(split.set_aside == [2] for split in parted)
    assert all(split.set_aside == [] for split in splits if split not in parted)


def test_short_phrases_are_not_set_aside():
    texts = ["good film", *(f"number {i} is a good film" for i in range(20))]
    splits = [overlap_free_split([texts], [0] * 21, size=5, seed=seed) for seed in range(5)]
    assert all(split.set_aside == [] for split in splits)


def test_the_split_is_a_function_of_the_seed():
    texts = [f"row number {i}" for i in range(100)]
    first, again, other = (overlap_free_split([texts], [0] * 100, size=10, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.select != other.select
    assert len(first.select) == 10


def test_premises_stay_together_and_groups_too_large_are_passed_over():
    premises = [f"the premise of group number {i // 3} is here" for i in range(60)]
    premises[:30] = ["one premise that half of all rows share"] * 30
    hypotheses = [f"a hypothesis all of its own {i}" for i in range(60)]
    split = overlap_free_split((premises, hypotheses), [0] * 60, size=10, seed=0)
    assert len(split.select) == 9
    assert min(split.select) >= 30
    assert {i // 3 for i in split.select}.isdisjoint(i // 3 for i in split.train)


@pytest.mark.parametrize("column", [0, 1])
def test_a_template_in_every_pair_is_passed_over_with_a_warning(column, caplog):
    template = ["this text is about sports and nothing else"] * 40
    texts = [f"a text of its own and number {i}" for i in range(40)]
    columns = (template, texts) if column else (texts, template)
    with caplog.at_level(logging.WARNING, "dynabert"):
        split = overlap_free_split(columns, [0] * 40, size=4, seed=0)
    assert len(split.select) == 4
    assert ("first", "second")[column] in caplog.text


def test_the_selected_rows_have_two_labels_where_that_is_possible():
    texts = [f"row number {i}" for i in range(50)]
    labels = [1] + [0] * 49
    for seed in range(5):
        split = overlap_free_split([texts], labels, size=3, seed=seed)
        assert {labels[i] for i in split.select} == {0, 1}
        assert len(split.select) == 3


@pytest.mark.parametrize("size", [-1, 0, 1, 4, 100])
def test_a_size_that_leaves_too_few_rows_is_refused(size):
    with pytest.raises(SettingError, match=f"cannot hold out {size} of 5"):
        overlap_free_split([list("abcde")], [0] * 5, size=size, seed=0)


def test_texts_that_all_hang_together_are_refused():
    with pytest.raises(DataError, match="overlap in their texts so much that 2 cannot be held out"):
        overlap_free_split([["the same text"] * 20], [0] * 20, size=2, seed=0)
