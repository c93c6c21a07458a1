import json
import pickle
import shutil

import pytest
from helpers import tiny_model
from model_folders import WATCH, Exploit, evil_code, refusal
from transformers import AutoTokenizer, BertTokenizer, RobertaTokenizer

from dynabert.loading import load_tokenizer, save_model

TEXTS = ["Hello World! d\u00e9j\u00e0 vu, \u4e2d\u6587 don't", "", "a" * 300, "word1 [MASK] word2"]


def bert_tokenizer(**settings):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world", "##s", "a", "##a", "\u4e2d", "Hello"]
    return BertTokenizer(vocab={word: index for index, word in enumerate(words)}, **settings)


def assert_same_tokens(first, second):
    for options in ({}, {"text_pair": TEXTS[::-1]}, {"truncation": True, "max_length": 8, "padding": True}):
        assert dict(first(TEXTS, **options)) == dict(second(TEXTS, **options))
    assert first.model_max_length == second.model_max_length
    assert first.special_tokens_map == second.special_tokens_map


def test_a_real_tokenizer_gives_what_autotokenizer_gives(minilm_dir, tmp_path):
    ours = load_tokenizer(minilm_dir)
    stock = AutoTokenizer.from_pretrained(minilm_dir)
    assert type(ours) is type(stock)
    assert_same_tokens(ours, stock)
    save_model(tiny_model("bert"), tmp_path / "model", tokenizer=ours)
    assert_same_tokens(load_tokenizer(tmp_path / "model"), stock)
    assert_same_tokens(AutoTokenizer.from_pretrained(tmp_path / "model"), stock)
    saved = (tmp_path / "model" / "tokenizer_config.json").read_text()
    assert str(tmp_path) not in saved and "local_files_only" not in saved


@pytest.mark.parametrize("family", ["bert", "dynabert-bert", "roberta"])
def test_a_vocabulary_alone_makes_a_tokenizer(family, tmp_path):
    if family == "roberta":
        (tmp_path / "vocab.json").write_text(json.dumps({"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "a": 4, "aa": 5}))
        (tmp_path / "merges.txt").write_text("#version: 0.2\na a\n")
        expected = [0, 5, 4, 2]
    else:
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##a"]
        (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
        expected = [2, 5, 6, 6, 3]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    tokenizer = load_tokenizer(tmp_path)
    assert type(tokenizer) is (RobertaTokenizer if family == "roberta" else BertTokenizer)
    assert tokenizer("aaa")["input_ids"] == expected


def test_settings_of_a_tokenizer_are_kept(tmp_path):
    bert_tokenizer(do_lower_case=False, model_max_length=17).save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert_same_tokens(loaded, AutoTokenizer.from_pretrained(tmp_path))
    assert loaded.model_max_length == 17
    assert loaded("Hello hello")["input_ids"] == [2, 11, 5, 3]


def edit_tokenizer(folder, **fields):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    "fields",
    [
        {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}},
        {"tokenizer_file": "../forbidden.json", "vocab_file": "../forbidden.txt"},
        {"fast_tokenizer_files": ["../forbidden/tokenizer.4.0.json"]},
        {"init_inputs": [{"evil": 1}], "tokenizer_object": 3, "gguf_file": "../forbidden.gguf"},
        {"name_or_path": "someone/else", "is_local": False, "fix_mistral_regex": True, "chat_template": "{{ evil }}"},
    ],
    ids=str,
)
def test_settings_that_could_choose_code_or_files_are_left_out(fields, tmp_path):
    folder = tmp_path / "model"
    tokenizer = bert_tokenizer()
    tokenizer.save_pretrained(folder)
    shutil.copy(folder / "tokenizer.json", tmp_path / "forbidden.json")
    (tmp_path / "forbidden").mkdir()
    shutil.copy(folder / "tokenizer.json", tmp_path / "forbidden" / "tokenizer.4.0.json")
    edit_tokenizer(folder, **fields)
    marker = evil_code(folder, "evil.py", "tokenization_bert.py")
    with WATCH:
        loaded = load_tokenizer(folder)
    assert not marker.exists()
    assert loaded.chat_template is None
    assert_same_tokens(loaded, tokenizer)


def test_a_class_that_we_do_not_know_gives_way_to_the_general_one(tmp_path):
    bert_tokenizer().save_pretrained(tmp_path)
    edit_tokenizer(tmp_path, tokenizer_class="EvilTokenizer")
    loaded = load_tokenizer(tmp_path)
    assert type(loaded).__module__.startswith("transformers.tokenization_utils")
    assert loaded(TEXTS)["input_ids"] == bert_tokenizer()(TEXTS)["input_ids"]


DAMAGED = [b"", b"{}", b"[1]", b"{" * 100_000, b"\xff\xfe", pickle.dumps(Exploit())]


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
def test_a_damaged_tokenizer_is_refused_in_one_line(name, content, tmp_path):
    bert_tokenizer().save_pretrained(tmp_path)
    (tmp_path / name).write_bytes(content)
    with WATCH:
        if content == b"{}" and name != "tokenizer.json":  # no settings are settings too
            assert load_tokenizer(tmp_path)("a")["input_ids"] == [2, 8, 3]
        else:
            assert str(tmp_path) in refusal(load_tokenizer, tmp_path)


def test_a_tokenizer_too_large_or_elsewhere_is_refused(tmp_path):
    folder = tmp_path / "model"
    bert_tokenizer().save_pretrained(folder)
    shutil.move(folder / "tokenizer.json", tmp_path / "elsewhere.json")
    (folder / "tokenizer.json").symlink_to(tmp_path / "elsewhere.json")
    assert "leads out of its folder" in refusal(load_tokenizer, folder)
    (folder / "tokenizer.json").unlink()
    with (folder / "tokenizer.json").open("wb") as file:
        file.truncate(2**30)
    assert "1,073,741,824 bytes" in refusal(load_tokenizer, folder)
    (folder / "tokenizer.json").unlink()
    assert "no tokenizer.json" in refusal(load_tokenizer, folder)
