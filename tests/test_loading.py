import json
import logging
import pickle
import shutil
from contextlib import suppress

import pytest
import torch
from cutting import NARROW, STOCK, cut_model
from helpers import FAMILY_NAMES, tiny_batch, tiny_model
from model_folders import CODE, WATCH, Exploit, edit_config, edit_weights, evil_code, logits, refusal, save_at
from safetensors.torch import load_file

from dynabert.errors import SettingError
from dynabert.families import FAMILIES
from dynabert.folders import verify_manifest
from dynabert.loading import has_head, load, save_model
from dynabert.modeling import HEADS, stock_class


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def folder(tmp_path):
    """A saved stock classifier with three labels, to be spoilt."""
    return save_at(tiny_model("bert"), tmp_path / "stock")


@pytest.fixture
def narrow_folder(tmp_path):
    return save_at(cut_model(tiny_model("bert"), NARROW), tmp_path / "narrow")


# Round trips


@pytest.mark.parametrize("slices", [NARROW, STOCK, None], ids=["narrow", "stock", "full"])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_saved_model_loads_as_it_was(family, slices, tmp_path):
    model = tiny_model(family)
    model.config.id2label, model.config.label2id = {0: "a", 1: "b", 2: "c"}, {"a": 0, "b": 1, "c": 2}
    model = cut_model(model, slices) if slices else model
    save_model(model, tmp_path / "model", extra_files={"elastic.json": "{}\n"})
    verify_manifest(tmp_path / "model")
    assert (tmp_path / "model" / "elastic.json").read_text() == "{}\n"
    before = torch.get_rng_state()
    for head in ("ForSequenceClassification", None):
        loaded = load(tmp_path / "model", head=head)
        assert type(loaded) is type(model)
        assert torch.equal(logits(loaded), logits(model))
        assert same(loaded.state_dict(), model.state_dict())
        assert loaded.config.id2label == {0: "a", 1: "b", 2: "c"}
        assert loaded.config.label2id == {"a": 0, "b": 1, "c": 2}
        assert not loaded.training
        assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
        assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert torch.equal(before, torch.get_rng_state())


def test_only_narrow_models_bring_code(folder, narrow_folder):
    files = {"config.json", "model.safetensors"}
    assert {path.name for path in folder.iterdir()} == files
    assert {path.name for path in narrow_folder.iterdir()} == files | CODE


def test_half_precision_weights_load_in_float32(tmp_path):
    save_model(tiny_model("bert").to(torch.bfloat16), tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded.classifier.weight, tiny_model("bert").classifier.weight.bfloat16().float())


def test_a_loaded_model_owns_its_weights(folder):
    loaded = load(folder)
    before = logits(loaded)
    with (folder / "model.safetensors").open("r+b") as file:  # in place, as a copy over it would
        file.write(bytes((folder / "model.safetensors").stat().st_size))
    assert torch.equal(logits(loaded), before)


@pytest.mark.parametrize("save", ["save_model", "save_pretrained"])
def test_a_narrow_model_trains_on_and_saves_again(save, narrow_folder, tmp_path):
    model = load(narrow_folder).train()
    batch = tiny_batch()
    model(**batch.inputs, labels=batch.labels).loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert not torch.equal(logits(model.eval()), logits(load(narrow_folder)))
    again = tmp_path / "again"
    if save == "save_model":
        save_model(model, again)
    else:
        model.save_pretrained(again)
    assert {path.name for path in again.iterdir()} >= CODE
    assert json.loads((again / "config.json").read_text())["auto_map"].keys() >= {"AutoConfig", "AutoModel"}
    assert torch.equal(logits(load(again)), logits(model))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", ["bert", "roberta"])  # the others' heads are RoBERTa's
def test_every_head_loads_as_stock_transformers_does(family, head, tmp_path):
    row = FAMILIES[family]
    config = tiny_model(family).config
    model = stock_class(row, head)(config).eval()
    model.save_pretrained(tmp_path / "model")
    stock = stock_class(row, head).from_pretrained(tmp_path / "model")
    for chosen in (head, None):
        loaded = load(tmp_path / "model", head=chosen)
        assert type(loaded) is type(model)
        assert same(loaded.state_dict(), stock.state_dict())
    assert loaded.all_tied_weights_keys == stock.all_tied_weights_keys
    if head == "ForMaskedLM":
        assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert has_head(tmp_path / "model", head)
    assert head == "ForMaskedLM" or not has_head(tmp_path / "model", "ForMaskedLM")
    save_model(model.base_model, tmp_path / "bare")
    assert has_head(tmp_path / "bare", head) == (head == "Model")  # the encoder alone needs none


def test_sharded_weights_load(folder):
    model = tiny_model("bert")
    shutil.rmtree(folder)
    model.save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    assert torch.equal(logits(load(folder)), logits(model))


# What the checkpoint lacks


def test_a_bare_encoder_gets_a_new_head_from_the_seed(tmp_path, caplog):
    save_model(tiny_model("bert").bert, tmp_path / "model")
    assert "embeddings.word_embeddings.weight" in load_file(tmp_path / "model" / "model.safetensors")
    before = torch.get_rng_state()
    with caplog.at_level(logging.INFO, logger="dynabert"):
        first, again, other = (load(tmp_path / "model", n_labels=3, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert len(caplog.records) == 3 and "classifier.weight, classifier.bias" in caplog.messages[0]
    assert same(first.bert.state_dict(), tiny_model("bert").bert.state_dict())
    assert torch.equal(first.classifier.weight, again.classifier.weight)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)
    assert 0.01 < first.classifier.weight.std() < 0.04 and not first.classifier.bias.any()
    assert type(load(tmp_path / "model", head=None)).__name__ == "BertModel"


def test_an_encoder_without_pooler_gets_one_with_its_new_head(tmp_path, caplog):
    model = stock_class(FAMILIES["bert"], "ForMaskedLM")(tiny_model("bert").config)
    save_model(model, tmp_path / "model")
    with caplog.at_level(logging.INFO, logger="dynabert"):
        loaded = load(tmp_path / "model")
    assert "pooler.dense.weight" in caplog.text and "classifier.bias" in caplog.text
    assert same(loaded.bert.encoder.state_dict(), model.bert.encoder.state_dict())


def test_old_names_of_norms_are_understood(folder):
    expected = logits(load(folder))
    new = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

    def old(state):
        return {next((name.replace(a, b) for a, b in new.items() if a in name), name): t for name, t in state.items()}

    edit_weights(folder, old)
    assert "bert.embeddings.LayerNorm.gamma" in load_file(folder / "model.safetensors")
    assert torch.equal(logits(load(folder)), expected)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_another_number_of_labels_makes_the_last_layer_new(family, tmp_path, caplog):
    model = tiny_model(family)
    save_model(model, tmp_path / "model")
    with caplog.at_level(logging.INFO, logger="dynabert"):
        loaded = load(tmp_path / "model", n_labels=5)
    assert "random" in caplog.text
    assert loaded.config.id2label == {index: f"LABEL_{index}" for index in range(5)}
    assert logits(loaded).shape == (5, 5)
    kept, old = loaded.state_dict(), model.state_dict()
    changed = {name for name in old if kept[name].shape != old[name].shape or not torch.equal(kept[name], old[name])}
    last = "classifier." if family == "bert" else "classifier.out_proj."
    assert changed == {f"{last}weight", f"{last}bias"}


def test_regression_has_one_output(folder):
    loaded = load(folder, problem="regression")
    assert loaded.config.problem_type == "regression"
    assert loaded.config.num_labels == 1
    save_model(loaded, folder)
    again = load(folder)
    assert again.config.problem_type == "regression"
    assert torch.equal(again.classifier.weight, loaded.classifier.weight)
    assert load(folder, n_labels=4).config.problem_type is None


def test_the_head_of_another_task_is_not_taken_over(tmp_path, caplog):
    tagger = stock_class(FAMILIES["bert"], "ForTokenClassification")(tiny_model("bert").config)
    save_model(tagger, tmp_path / "model")
    with caplog.at_level(logging.INFO, logger="dynabert"):
        loaded = load(tmp_path / "model")
    assert "classifier.weight" in caplog.text
    assert loaded.classifier.weight.shape == tagger.classifier.weight.shape
    assert not torch.equal(loaded.classifier.weight, tagger.classifier.weight)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_labels": 0}, "outside 1"),
        ({"n_labels": 3, "problem": "regression"}, "regression"),
        ({"problem": "multi_label_classification"}, "known: regression"),
        ({"n_labels": 3, "head": "Model"}, "does not go with head 'Model'"),
        ({"head": "ForSequenceClasification"}, "did you mean 'ForSequenceClassification'"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused(options, words, folder):
    assert words in refusal(load, folder, error=SettingError, **options)


# Configurations that do not fit


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"hidden_size": 32}, "has shape"),
        ({"hidden_size": "64"}, "expected int"),
        ({"num_hidden_layers": 3}, "3 layers, the weights have 4"),
        ({"num_hidden_layers": 10**9}, "1000000000 layers"),
        ({"num_attention_heads": 0}, "cannot be used"),
        ({"num_attention_heads": 5}, "not a multiple"),
        ({"vocab_size": 2**62}, "cannot be used"),
        ({"intermediate_size": 2**40}, "has shape"),
        ({"hidden_act": "os.system"}, "cannot be used"),
        ({"hidden_dropout_prob": 7}, "cannot be used"),
        ({"id2label": {"x": "y"}}, "must name labels by number"),
        ({"id2label": ["x", "y", "z"]}, "must name labels by number"),
        ({"id2label": None, "num_labels": 10**12}, "num_labels 1000000000000"),
        ({"id2label": None, "num_labels": "many"}, "num_labels 'many'"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantised"),
        ({"position_embedding_type": "relative_key"}, "give a model with absolute ones"),
        ({"is_decoder": True}, "decoder"),
        ({"problem_type": "poetry"}, "problem_type 'poetry' is unknown"),
    ],
    ids=str,
)
def test_configurations_that_do_not_fit_are_refused(fields, words, folder):
    edit_config(folder, **fields)
    assert words in refusal(load, folder)


def test_a_narrow_configuration_must_fit_too(narrow_folder):
    edit_config(narrow_folder, kept=[[2, 24], [1, 64], [3, 16]])
    assert "has shape [64, 64], not [64, 48]" in refusal(load, narrow_folder)
    edit_config(narrow_folder, kept=[[2, 24], [1, 65], [4, 16]])
    assert "exceeds the original 4 heads and 64 neurons" in refusal(load, narrow_folder)


@pytest.mark.parametrize("model_type", ["distilbert", "dynabert-distilbert", None, 3, ["bert"], "x" * 5000])
def test_an_unknown_family_names_the_known_ones(model_type, folder):
    edit_config(folder, model_type=model_type)
    assert "known: bert, roberta, xlm-roberta, camembert" in refusal(load, folder, error=SettingError)


# Nothing that lies in a folder runs


def test_the_watch_sees_what_it_must(tmp_path):
    (tmp_path / "forbidden").write_bytes(pickle.dumps(Exploit()))
    with pytest.raises(AssertionError), WATCH, suppress(SystemExit):
        pickle.loads((tmp_path / "forbidden").read_bytes())
    assert [event for event, _ in WATCH.seen] == ["open", "pickle.find_class"]


@pytest.mark.parametrize(
    "fields",
    [
        {"auto_map": {"AutoModelForSequenceClassification": "evil.Model", "AutoConfig": "evil.Config"}},
        {"auto_map": {"AutoModelForSequenceClassification": "someone/else--evil.Model"}},
        {"_attn_implementation_internal": "someone/kernel"},
        {"_attn_implementation": "someone/kernel", "attn_implementation": "someone/kernel:evil"},
        {"_experts_implementation_internal": "someone/kernel", "experts_implementation": "someone/kernel"},
        {"transformers_weights": "../forbidden.safetensors", "model_file": "evil.py"},
        {"fusion_config": {"layer": "evil.Fused"}, "kernel_config": {"BertLayer": "someone/kernel:Evil"}},
        {"per_layer_config": {"0": {"intermediate_size": 3}}, "chunk_size_feed_forward": -1},
        {"architectures": ["evil.Model", 3], "tokenizer_class": "evil.Tokenizer"},
        {"dtype": "nn", "torch_dtype": "hub", "return_dict": False, "is_encoder_decoder": True},
        {"label2id": ["x"], "id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}, "num_labels": 10**9},
        {"_name_or_path": "../forbidden", "custom_pipelines": {"x": {"impl": "evil.Pipe"}}},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["stock", "narrow"])
def test_fields_that_could_choose_code_are_left_out(kind, fields, folder, narrow_folder):
    path = folder if kind == "stock" else narrow_folder
    expected = load(path)
    edit_config(path, **fields)
    marker = evil_code(path, "evil.py", *CODE, "modeling_bert.py", "__init__.py")
    with WATCH:
        loaded = load(path)
    assert not marker.exists()
    assert type(loaded) is type(expected)
    assert torch.equal(logits(loaded), logits(expected))
    assert loaded.config._attn_implementation == "sdpa"
    assert loaded.config.label2id == {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}


# Saving


def test_an_extra_file_has_a_plain_name_of_its_own(tmp_path):
    for name in ("../x", "a/b", "config.json", "", ".."):
        with pytest.raises(SettingError, match="cannot be the name of an extra file"):
            save_model(tiny_model("bert"), tmp_path / "model", extra_files={name: "text"})
    assert list(tmp_path.iterdir()) == []


def test_saving_replaces_a_former_model_whole(tmp_path):
    save_model(cut_model(tiny_model("bert"), NARROW), tmp_path / "model")
    save_model(tiny_model("bert"), tmp_path / "model")
    assert CODE.isdisjoint(path.name for path in (tmp_path / "model").iterdir())
    verify_manifest(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
