import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from dynabert import batches as module
from dynabert.batches import Batches, Encoded, encode
from dynabert.data import Rows, load_task
from dynabert.errors import DataError, SettingError
from dynabert.tasks import TASKS

PAD = 9


def tokenizer(*, types=True):
    """One token a letter: a is 3, b is 4, ...; [CLS] is 1, [SEP] is 2."""
    words = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2} | {letter: i + 3 for i, letter in enumerate("abcdefghij")}
    fast = Tokenizer(models.WordLevel(words, unk_token="[PAD]"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    fast.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    names = ["input_ids", "token_type_ids", "attention_mask"] if types else ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=fast, pad_token="[PAD]", model_input_names=names)


def encoded(lengths, *, types=False, labels=True):
    """Row i has its length in tokens, all of them 100 + i, the id 1000 + i and the label i."""
    input_ids = [np.full(n, 100 + i, dtype=np.int32) for i, n in enumerate(lengths)]
    type_ids = [np.ones(n, dtype=np.int32) for n in lengths] if types else None
    numbers = np.arange(len(lengths), dtype=np.int64)
    return Encoded(input_ids, type_ids, numbers if labels else None, numbers + 1000)


def made(rows, **settings):
    return Batches(rows, **({"batch_size": 4, "seed": 0, "pad_id": PAD} | settings))


def epoch_ids(batches, epoch=0):
    return [batches.at(epoch * len(batches) + step).ids.tolist() for step in range(len(batches))]


def test_rows_become_token_ids_in_their_order(monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 2)
    result = encode(tokenizer(), Rows((["a b", "c", "d d d"],), [1, 0, 1], [7, 8, 9]))
    assert [tokens.tolist() for tokens in result.input_ids] == [[1, 3, 4, 2], [1, 5, 2], [1, 6, 6, 6, 2]]
    assert result.labels.tolist() == [1, 0, 1]
    assert result.labels.dtype == np.int64
    assert result.ids.tolist() == [7, 8, 9]


def test_of_a_pair_the_longer_text_is_cut_first():
    result = encode(tokenizer(), Rows((["a a a a a a"], ["b b"]), [0.5], [0]), max_length=8)
    assert result.input_ids[0].tolist() == [1, 3, 3, 3, 2, 4, 4, 2]
    assert result.type_ids[0].tolist() == [0] * 5 + [1] * 3
    assert result.labels.dtype == np.float32


def test_types_and_labels_are_there_only_where_they_exist():
    result = encode(tokenizer(types=False), Rows((["a"],), None, [0]))
    assert result.type_ids is None
    assert result.labels is None
    batch = made(result).at(0)
    assert list(batch.inputs) == ["input_ids", "attention_mask"]
    assert batch.labels is None


def test_tokens_without_room_and_slow_tokenizers_are_refused():
    rows = Rows((["a"], ["b"]), None, [0])
    with pytest.raises(SettingError, match="max_length 4 leaves no room beside 3 special tokens"):
        encode(tokenizer(), rows, max_length=4)
    assert len(encode(tokenizer(), rows, max_length=5)) == 1

    class Slow:
        is_fast = False

    with pytest.raises(SettingError, match="Slow is not a fast tokenizer"):
        encode(Slow(), rows)


def test_a_batch_is_padded_to_its_longest_row():
    batch = made(encoded([2, 4, 1], types=True), shuffle=False).at(0)
    assert batch.inputs["input_ids"].tolist() == [[101] * 4, [100, 100, PAD, PAD], [102, PAD, PAD, PAD]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]
    assert batch.inputs["token_type_ids"].tolist() == batch.inputs["attention_mask"].tolist()
    assert {tensor.dtype for tensor in (*batch.inputs.values(), batch.labels, batch.ids)} == {torch.int64}
    assert (batch.labels.tolist(), batch.ids.tolist(), len(batch)) == ([1, 0, 2], [1001, 1000, 1002], 3)


def test_a_fixed_length_pads_every_batch_to_it():
    batches = made(encoded([2, 4, 1, 3, 3]), batch_size=2, pad_to=6)
    assert [batch.inputs["input_ids"].shape[1] for batch in batches] == [6, 6, 6]
    with pytest.raises(SettingError, match="pad_to 3 is below the longest row, 4 tokens"):
        made(encoded([2, 4]), pad_to=3)


@pytest.mark.parametrize("settings", [{}, {"pad_to": 40}, {"rank": 1, "world": 3}, {"shuffle": False}])
def test_the_shape_of_a_batch_is_known_without_making_it(settings):
    batches = made(encoded(range(1, 31)), **settings)
    for step in range(2 * len(batches)):
        assert batches.shape(step) == tuple(batches.at(step).inputs["input_ids"].shape)


def test_a_batch_moves_as_a_whole():
    batch = made(encoded([2, 4], types=True)).at(0).to("meta")
    assert {tensor.device.type for tensor in (*batch.inputs.values(), batch.labels, batch.ids)} == {"meta"}
    assert made(encoded([2], labels=False)).at(0).to("cpu").labels is None


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=120),
    st.integers(1, 9),
    st.integers(1, 4),
    st.booleans(),
    st.integers(0, 5),
)
@settings(deadline=None)
def test_every_row_comes_once_in_every_epoch_over_all_ranks(lengths, batch_size, world, shuffle, epoch):
    world = min(world, len(lengths))
    rows, global_size = encoded(lengths), batch_size * world
    ranks = [made(rows, batch_size=global_size, shuffle=shuffle, rank=rank, world=world) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    seen = []
    for batches in ranks:
        for step in range(epoch * len(batches), (epoch + 1) * len(batches)):
            batch = batches.at(step)
            seen += batch.ids.tolist()
            assert 1 <= len(batch) <= batch_size + 1
            width = batch.inputs["input_ids"].shape[1]
            assert width == max(lengths[i - 1000] for i in batch.ids.tolist())
            for tokens, mask, i in zip(*batch.inputs.values(), (batch.ids - 1000).tolist(), strict=True):
                assert tokens.tolist() == [100 + i] * lengths[i] + [PAD] * (width - lengths[i])
                assert mask.tolist() == [1] * lengths[i] + [0] * (width - lengths[i])
    assert sorted(seen) == [1000 + i for i in range(len(lengths))]


@given(st.lists(st.integers(0, 40), min_size=1, max_size=20), st.booleans())
@settings(deadline=None)
def test_a_batch_depends_on_its_step_and_on_no_other_call(steps, shuffle):
    rows = encoded([1 + i % 7 for i in range(30)])
    used = made(rows, shuffle=shuffle)
    for step in steps:
        fresh = made(rows, shuffle=shuffle)
        assert used.at(step).ids.tolist() == fresh.at(step).ids.tolist()


def test_ranks_share_the_rows_of_one_large_process():
    rows = encoded([1 + i % 7 for i in range(86)])
    alone = made(rows, batch_size=8)
    ranks = [made(rows, batch_size=8, world=2, rank=rank) for rank in range(2)]
    assert len(alone) == len(ranks[0]) == 11
    for step in range(2 * len(alone)):
        together = [i for batches in ranks for i in batches.at(step).ids.tolist()]
        assert sorted(together) == sorted(alone.at(step).ids.tolist())


def test_two_ranks_and_two_accumulated_parts_are_the_same_micro_batches():
    rows = encoded([1 + i % 7 for i in range(62)])
    ranks = [made(rows, batch_size=8, world=2, rank=rank, accumulate=3) for rank in range(2)]
    alone, whole = made(rows, batch_size=8, accumulate=6), made(rows, batch_size=8)
    for step in range(2 * len(alone)):
        together = [part for batches in ranks for part in batches.micro_batches(step)]
        mine = alone.micro_batches(step)
        assert [part.ids.tolist() for part in together] == [part.ids.tolist() for part in mine]
        assert [part.inputs["input_ids"].tolist() for part in together] == [
            p.inputs["input_ids"].tolist() for p in mine
        ]
        assert len({part.whole for part in (*together, *mine)}) == 1
        sizes = mine[0].whole
        assert sizes.examples == len(whole.at(step)) == sum(len(part) for part in mine)
        assert sizes.tokens == sum(int(part.inputs["attention_mask"].sum()) for part in mine)
        assert sizes.padded_tokens == sum(part.inputs["attention_mask"].numel() for part in mine)
    assert sorted(i for part in alone for i in part.ids.tolist()) == rows.ids.tolist()
    with pytest.raises(SettingError, match="6 micro-batches"):
        alone.at(0)


def test_no_rank_is_ever_without_rows():
    ranks = [made(encoded([3] * 13), batch_size=12, world=4, rank=rank) for rank in range(4)]
    assert [[len(batch) for batch in batches] for batches in ranks] == [[4], [3], [3], [3]]


def test_each_epoch_and_each_seed_has_its_own_order():
    rows = encoded([1 + i % 7 for i in range(100)])
    first, again, other = made(rows, seed=1), made(rows, seed=1), made(rows, seed=2)
    assert epoch_ids(first) == epoch_ids(again)
    assert epoch_ids(first) != epoch_ids(first, epoch=1)
    assert epoch_ids(first) != epoch_ids(other)
    fixed = made(rows, seed=1, shuffle=False)
    assert epoch_ids(fixed) == epoch_ids(fixed, epoch=1) == epoch_ids(made(rows, seed=2, shuffle=False))


def test_shuffled_batches_hold_rows_of_similar_length_in_random_order():
    lengths = np.random.default_rng(0).integers(1, 100, 4000).tolist()
    batches = made(encoded(lengths), batch_size=16)
    widths = [batch.inputs["input_ids"].shape[1] for batch in batches]
    assert sum(width * 16 for width in widths) < 1.05 * sum(lengths)
    assert abs(np.corrcoef(widths[1:], widths[:-1])[0, 1]) < 0.2


def test_rows_meet_different_neighbours_in_each_epoch():
    batches = made(encoded([1 + i % 3 for i in range(2000)]), batch_size=8)
    neighbours = [
        {frozenset((left, right)) for batch in epoch_ids(batches, epoch) for left in batch for right in batch}
        for epoch in range(2)
    ]
    assert len(neighbours[0] & neighbours[1]) < 2000 + 0.05 * len(neighbours[0])


def test_without_shuffling_the_longest_rows_come_first():
    batches = made(encoded([2, 9, 4, 9, 1]), batch_size=2, shuffle=False)
    assert epoch_ids(batches) == [[1001, 1003], [1002, 1000], [1004]]
    assert [batch.ids.tolist() for batch in batches] == epoch_ids(batches)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch size 0 is below 1"),
        ({"rank": 2, "world": 2}, "rank 2 of 2"),
        ({"rank": -1}, "rank -1 of 1"),
        ({"world": 4}, "4 micro-batches a step do not fit 3 rows"),
        ({"world": 0}, "rank 0 of 0"),
        ({"accumulate": 0}, "accumulate 0 is below 1"),
        ({"batch_size": 1, "accumulate": 2}, "batch size 1 is below the 2 micro-batches"),
        ({"batch_size": None}, "one of them"),
        ({"max_tokens": 100}, "one of them"),
        ({"batch_size": None, "max_tokens": 2}, "max_tokens 2 is too few for rows of up to 3 tokens; give at least 3"),
        ({"batch_size": None, "max_tokens": 5, "world": 2}, "give at least 6"),
        ({"batch_size": None, "max_tokens": 9, "pad_to": 4}, "max_tokens does not go with it"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        made(encoded([1, 2, 3]), **settings)


def test_no_rows_and_negative_steps_are_refused():
    with pytest.raises(DataError, match="no rows"):
        made(encoded([]))
    with pytest.raises(SettingError, match="step -1 is below 0"):
        made(encoded([1])).at(-1)


@pytest.mark.parametrize("name", ["sst2", "rte", "stsb"])
def test_real_rows_go_through_a_real_tokenizer(data_dir, minilm_dir, name):
    fast = AutoTokenizer.from_pretrained(minilm_dir)
    rows = load_task(TASKS[name], data_dir, limit=1000).train
    coded = encode(fast, rows, max_length=64)
    batches = Batches(coded, batch_size=32, seed=0, pad_id=fast.pad_token_id)
    seen, n_tokens, n_real = [], 0, 0
    for batch in batches:
        seen += batch.ids.tolist()
        n_tokens += batch.inputs["input_ids"].numel()
        n_real += int(batch.inputs["attention_mask"].sum())
        assert (batch.inputs["input_ids"][:, 0] == fast.cls_token_id).all()
    assert sorted(seen) == rows.ids
    assert n_real > 0.9 * n_tokens
    assert coded.labels.dtype == (np.float32 if name == "stsb" else np.int64)
    assert max(map(len, coded.input_ids)) <= 64
    first = batches.at(0)
    place = rows.ids.index(int(first.ids[0]))
    alone = fast(*(column[place] for column in rows.texts), truncation=True, max_length=64)
    n = len(alone["input_ids"])
    for key, values in alone.items():
        assert first.inputs[key][0, :n].tolist() == values
        assert not first.inputs[key][0, n:].any()
