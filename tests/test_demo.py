import csv
import re
from dataclasses import replace

import pytest
import torch
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from transformers import AutoModel, AutoTokenizer

from dynabert.demo import (
    LABELS,
    MAX_LENGTH,
    N_WORDS,
    SHAPE,
    DemoSettings,
    generate,
    prepare,
    write_corpus,
    write_encoder,
)
from dynabert.errors import ModelFileError, SettingError
from dynabert.families import family_of
from dynabert.plan import Plan, Source
from dynabert.saved import Saved

N_ROWS = 3000


@pytest.fixture(scope="module")
def rows():
    return generate(N_ROWS, seed=3)


@pytest.fixture(scope="module")
def encoder(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "encoder"
    write_encoder(folder, (text for text, _ in rows), seed=3)
    return folder


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        return [tuple(row) for row in csv.reader(file)]


def test_rows_are_a_function_of_the_seed(rows):
    assert generate(N_ROWS, seed=3) == rows
    assert generate(101, seed=3) == rows[:101]
    assert not set(generate(100, seed=4)) & set(rows[:100])


def test_labels_are_balanced_in_every_stretch_of_rows(rows):
    for start in (0, 500, N_ROWS - 500):
        labels = [label for _, label in rows[start : start + 500]]
        assert [labels.count(name) for name in LABELS] == [250, 250]
    assert {label for _, label in rows[::2]} == set(LABELS), "no label may stand on the even rows alone"


def test_texts_differ_and_have_a_sensible_length(rows):
    texts = [text for text, _ in rows]
    assert len(set(texts)) == N_ROWS
    lengths = {len(text.split()) for text in texts}
    assert lengths <= set(N_WORDS)
    assert min(lengths) <= 10 and max(lengths) >= 28


def test_an_odd_or_empty_number_of_rows():
    assert len(generate(7, seed=0)) == 7
    assert generate(0, seed=0) == []


RANKINGS = {
    r"{who} preferred the (\w+) to the \w+": "positive",
    r"for {who} the (\w+) beat the \w+": "positive",
    r"{who} ranked the (\w+) below the \w+": "negative",
    r"{who} liked the (\w+) less than the \w+": "negative",
}


def test_a_ranking_speaks_for_the_thing_of_the_header(rows):
    found = 0
    for text, label in rows:
        who, what, body = re.fullmatch(r"(\w+) on the (\w+): (.*)\.", text).groups()
        for pattern, first_is in RANKINGS.items():
            if match := re.fullmatch(pattern.format(who=who), body):
                found += 1
                assert (label == first_is) == (match[1] == what), text
    assert found > 50


TURNS = r"not|never|hardly|far from|by no means|anything but|scarcely|nowhere near|not at all|not very"
KEEPS = r"very|truly|quite|nothing but|never less than|nothing short of|never anything but"


def test_negation_turns_the_meaning_of_its_own_word(rows):
    said, found = {}, {"turned": 0, "kept": 0, "denied": 0}
    statement = r"(\w+) on the (\w+): \1 (found the \2|thought the \2 was) (?:({})? )?(\w+)\."
    for text, label in rows:
        if match := re.fullmatch(statement.format(KEEPS), text):
            assert said.setdefault(match[5], label) == label, text
            found["kept"] += match[4] is not None
    for text, label in rows:
        if match := re.fullmatch(statement.format(TURNS), text):
            assert match[4] is None or said[match[5]] != label, text
            found["turned"] += match[4] is not None
        if match := re.fullmatch(r"(\w+) on the (\w+): \1 (denied|doubted) that the \2 was (\w+)\.", text):
            assert said.get(match[4]) != label, text
            found["denied"] += match[4] in said
    assert min(found.values()) >= 5, found


@pytest.mark.parametrize(("words_at_once", "bound"), [(1, 0.68), (2, 0.75)])
def test_counting_words_does_not_help(rows, words_at_once, bound):
    texts, labels = zip(*rows, strict=True)
    counter = CountVectorizer(ngram_range=(1, words_at_once), binary=True)
    counts = counter.fit_transform(texts[: -N_ROWS // 3])
    model = LogisticRegression(C=0.1, max_iter=500).fit(counts, labels[: -N_ROWS // 3])
    assert 0.52 < model.score(counter.transform(texts[-N_ROWS // 3 :]), labels[-N_ROWS // 3 :]) < bound


def test_corpus_files_hold_the_rows_and_share_none(tmp_path):
    write_corpus(tmp_path / "data", n_train=300, n_validation=100, seed=1)
    train, validation = read_csv(tmp_path / "data/train.csv"), read_csv(tmp_path / "data/validation.csv")
    assert train[0] == validation[0] == ("text", "label")
    assert (len(train), len(validation)) == (301, 101)
    assert not {text for text, _ in train[1:]} & {text for text, _ in validation[1:]}
    assert sorted(train[1:] + validation[1:]) == sorted(generate(400, seed=1))


def test_tokenizer_knows_every_word_and_gives_the_text_back(rows, encoder):
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    texts = [text for text, _ in rows]
    encoded = tokenizer(texts)
    assert not any(tokenizer.unk_token_id in ids for ids in encoded["input_ids"])
    assert max(map(len, encoded["input_ids"])) <= MAX_LENGTH
    decoded = tokenizer.batch_decode(encoded["input_ids"], skip_special_tokens=True)
    assert ["".join(text.split()) for text in decoded] == ["".join(text.lower().split()) for text in texts]
    assert encoded["input_ids"][0][0] == tokenizer.cls_token_id and tokenizer.pad_token_id == 0


def test_encoder_is_a_plain_hugging_face_folder(rows, encoder):
    model, loaded = AutoModel.from_pretrained(encoder, output_loading_info=True)
    assert not any(loaded.values())
    assert family_of(model.config.model_type).shape(model.config) == SHAPE
    inputs = AutoTokenizer.from_pretrained(encoder)([text for text, _ in rows[:4]], padding=True, return_tensors="pt")
    assert model(**inputs).last_hidden_state.isfinite().all()


def test_encoder_is_a_function_of_texts_and_seed(rows, encoder, tmp_path):
    before = torch.random.get_rng_state()
    for name, seed in (("same", 3), ("other", 4)):
        write_encoder(tmp_path / name, (text for text, _ in rows), seed=seed)
    assert torch.equal(torch.random.get_rng_state(), before)
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "same" / name).read_bytes() == (encoder / name).read_bytes()
    assert (tmp_path / "other/model.safetensors").read_bytes() != (encoder / "model.safetensors").read_bytes()
    assert (tmp_path / "other/tokenizer.json").read_bytes() == (encoder / "tokenizer.json").read_bytes()


def test_prepared_job_loads_as_the_users_would(tmp_path):
    settings = DemoSettings(n_train=300, n_validation=60)
    model, source, plan = prepare(tmp_path / "run", seed=5, settings=settings)
    task, roles = source.load()
    assert not (tmp_path / "run").exists(), "the run folder itself must be left to the run"
    assert task.labels == LABELS
    assert len(roles.validation) == 60
    assert len(roles.train) + len(roles.select) + roles.n_set_aside == 300
    assert roles.n_set_aside <= 3
    assert (plan.batching.batch_size, plan.teacher.lr, plan.training.seed) == (
        settings.batch_size,
        settings.teacher_lr,
        5,
    )
    weights = (model / "model.safetensors").read_bytes()
    again = prepare(tmp_path / "run", seed=5, settings=settings)
    assert again == (model, source, plan)
    assert again[1].load()[1].fingerprint == roles.fingerprint
    assert (model / "model.safetensors").read_bytes() == weights


def test_a_folder_of_another_demo_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    settings = DemoSettings(n_train=300, n_validation=60)
    *_, plan = prepare(tmp_path / "made", seed=5, settings=settings)
    former = [replace(plan, training=replace(plan.training, seed=6)), Plan()]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    source = Source("sst2")
    for other in former:
        monkeypatch.setattr(Saved, "of", lambda out, other=other: Saved("", source, source, other, "", ""))
        with pytest.raises(SettingError, match=r"run of another seed or recipe .* delete that folder"):
            prepare(tmp_path / "run", seed=5, settings=settings)
    monkeypatch.undo()
    with pytest.raises(ModelFileError, match="not of this version"):
        prepare(tmp_path / "run", seed=5, settings=settings)
    assert not (tmp_path / "run-data").exists()


def test_too_few_rows_are_refused():
    with pytest.raises(SettingError, match=r"n_train 3 .* at least 10"):
        DemoSettings(n_train=3)
