import json
import logging
import pickle
import shutil
import struct
import sys
from contextlib import suppress
from pathlib import Path

import huggingface_hub
import pytest
import torch
from cutting import NARROW, STOCK, cut_model
from helpers import FAMILY_NAMES, tiny_batch, tiny_model
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertTokenizer, RobertaTokenizer

from dynabert.errors import ModelFileError, SettingError
from dynabert.families import FAMILIES
from dynabert.files import verify_manifest
from dynabert.loading import load, load_tokenizer, resolve, save_model
from dynabert.modeling import HEADS, stock_class

CODE = {"narrow.py", "configuration_dynabert_bert.py", "modeling_dynabert_bert.py"}


def logits(model, batch=None):
    with torch.no_grad():
        return model(**(batch or tiny_batch()).inputs).logits


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A stock and a narrow classifier with three labels, saved once."""
    root = tmp_path_factory.mktemp("saved")
    save_model(tiny_model("bert"), root / "stock")
    save_model(cut_model(tiny_model("bert"), NARROW), root / "narrow")
    return root


@pytest.fixture
def folder(saved, tmp_path):
    """The stock one, to be spoilt."""
    return Path(shutil.copytree(saved / "stock", tmp_path / "stock"))


@pytest.fixture
def narrow_folder(saved, tmp_path):
    return Path(shutil.copytree(saved / "narrow", tmp_path / "narrow"))


def edit_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def edit_weights(folder, change):
    """Rewrite the weights as `change` makes them of the dict of tensors."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file(change(state), folder / "model.safetensors")


def refusal(action, *arguments, error=ModelFileError, **options):
    """The one line with which an action is refused."""
    with pytest.raises(error) as caught:
        action(*arguments, **options)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 600, line
    return line


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
    files = {"config.json", "model.safetensors", "MANIFEST.json"}
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


# What does not fit


def drop(*parts):
    return lambda state: {name: tensor for name, tensor in state.items() if not any(part in name for part in parts)}


def put(name, tensor):
    return lambda state: {**state, name: tensor}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop("layer.2.attention.self.key.bias"), "lacks the tensor encoder.layer.2.attention.self.key.bias"),
        (drop("word_embeddings"), "lacks the tensor embeddings.word_embeddings.weight"),
        (drop("classifier.bias"), "lacks the tensor classifier.bias"),
        (drop("pooler.dense"), "lacks the tensor pooler.dense"),
        (drop("layer.3."), "4 layers, the weights have 3"),
        (put("bert.encoder.layer.4.output.dense.bias", torch.ones(64)), "4 layers, the weights have 5"),
        (put("bert.encoder.layer.0.adapter.weight", torch.ones(2)), "adapter.weight' has no place"),
        (put("bert.encoder.layer.1.output.dense.bias", torch.ones(63)), "has shape [63], not [64]"),
        (put("classifier.weight", torch.ones(4, 64)), "has shape [4, 64], not [3, 64]"),
        (put("classifier.bias", torch.ones(3, dtype=torch.int8)), "holds I8 numbers"),
        (put("embeddings.word_embeddings.weight", torch.ones(48, 64)), "is there twice"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_weights_that_do_not_fit_are_named(change, words, folder):
    edit_weights(folder, change)
    assert words in refusal(load, folder)


def test_saved_position_buffers_do_no_harm(folder):
    edit_weights(folder, put("bert.embeddings.position_ids", torch.arange(40)[None]))
    assert torch.equal(logits(load(folder)), logits(tiny_model("bert")))


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


def test_more_layers_than_are_read_are_refused_at_once(folder):
    tensors = {f"bert.encoder.layer.{index}.x": torch.ones(1) for index in range(4, 300)}
    edit_weights(folder, lambda state: {**state, **tensors})
    edit_config(folder, num_hidden_layers=300)
    assert "300 layers, more than" in refusal(load, folder)


# Hostile folders: nothing runs, nothing outside is read, one line says why


class Watch:
    """Records, inside ``with``, what loading must never do; leaving the block fails if there was any."""

    NEVER = ("pickle.find_class", "socket.connect", "os.system", "subprocess.Popen", "ctypes.dlopen")

    def __init__(self):
        self.on = False
        self.seen = []
        sys.addaudithook(self.hook)

    def hook(self, event, arguments):
        if self.on and (event in self.NEVER or (event == "open" and "forbidden" in str(arguments[0]))):
            self.seen.append((event, str(arguments)))

    def __enter__(self):
        self.seen.clear()
        self.on = True

    def __exit__(self, *_):
        self.on = False
        assert self.seen == []


WATCH = Watch()  # an audit hook stays for the life of the process


def test_the_watch_sees_what_it_must(tmp_path):
    (tmp_path / "forbidden").write_bytes(pickle.dumps(Exploit()))
    with pytest.raises(AssertionError), WATCH, suppress(SystemExit):
        pickle.loads((tmp_path / "forbidden").read_bytes())
    assert [event for event, _ in WATCH.seen] == ["open", "pickle.find_class"]


def evil_code(folder, *names):
    """Python files that leave a mark if they are ever run."""
    marker = folder.parent / "marker"
    for name in names:
        (folder / name).write_text(f"open({str(marker)!r}, 'w').close()\nraise SystemExit\n")
    return marker


class Exploit:
    def __reduce__(self):
        return exec, ("raise SystemExit",)


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


def spoil_pickle(folder):
    (folder / "model.safetensors").write_bytes(pickle.dumps(Exploit()))


def spoil_zip(folder):
    torch.save({"x": Exploit()}, folder / "model.safetensors")


def spoil_bin_only(folder):
    torch.save({"x": Exploit()}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def spoil_config_pickle(folder):
    (folder / "config.json").write_bytes(pickle.dumps(Exploit()))


def spoil_truncated(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def spoil_empty(folder):
    (folder / "model.safetensors").write_bytes(b"")


def spoil_header_size(folder):
    data = (folder / "model.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    padded = data[8 : 8 + size].ljust(11 * 2**20)  # still a valid file, only no honest one
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(padded)) + padded + data[8 + size :])


def spoil_shape(folder):
    entry = {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]}
    header = json.dumps({"classifier.bias": entry}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))


def spoil_deep_json(folder):
    (folder / "config.json").write_text("[" * 100_000 + "]" * 100_000)


def spoil_deep_field(folder):
    (folder / "config.json").write_text('{"model_type": "bert", "x": ' + "[" * 100_000 + "]" * 100_000 + "}")


def spoil_repeated_key(folder):
    (folder / "config.json").write_text('{"model_type": "bert", "model_type": "roberta"}')


def spoil_long_config(folder):
    edit_config(folder, x="y" * 2**20)


def spoil_list(folder):
    (folder / "config.json").write_text("[1]")


def spoil_nan(folder):
    (folder / "config.json").write_text('{"model_type": "bert", "layer_norm_eps": NaN}')


def spoil_latin(folder):
    (folder / "config.json").write_bytes('{"model_type": "bért"}'.encode("latin-1"))


def spoil_no_config(folder):
    (folder / "config.json").unlink()


def spoil_no_weights(folder):
    (folder / "model.safetensors").unlink()


def spoil_config_folder(folder):
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()


def spoil_link(folder, name="model.safetensors"):
    shutil.move(folder / name, folder.parent / f"forbidden-{name}")
    (folder / name).symlink_to(folder.parent / f"forbidden-{name}")


def spoil_config_link(folder):
    spoil_link(folder, "config.json")


def spoil_link_loop(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder / "model.safetensors")


def spoil_index(folder, name="../forbidden.safetensors"):
    shutil.copy(folder / "model.safetensors", folder.parent / "forbidden.safetensors")
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"classifier.bias": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def spoil_index_absolute(folder):
    spoil_index(folder, str(folder.parent / "forbidden.safetensors"))


def spoil_index_missing(folder):
    spoil_index(folder, "model-\n00001.safetensors")


def spoil_index_type(folder):
    spoil_index(folder, 3)


def spoil_index_pickle(folder):
    spoil_index(folder, "pytorch_model.bin")
    torch.save({"x": Exploit()}, folder / "pytorch_model.bin")


SPOILERS = [value for name, value in sorted(globals().items()) if name.startswith("spoil_")]


@pytest.mark.parametrize("spoil", SPOILERS, ids=lambda spoil: spoil.__name__)
def test_a_spoilt_folder_is_refused_in_one_line(spoil, folder):
    spoil(folder)
    with WATCH:
        line = refusal(load, folder)
    assert str(folder) in line


def test_pickled_weights_come_with_the_way_out(folder):
    spoil_bin_only(folder)
    line = refusal(load, folder)
    assert "pytorch_model.bin" in line and "save_pretrained" in line


# Where models come from


def test_a_path_that_is_no_model_is_refused(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("a path went to the hub"))
    assert "neither a folder nor the name" in refusal(load, tmp_path / "missing")
    assert "neither a folder nor the name" in refusal(load, "./missing")
    assert "neither a folder nor the name" in refusal(load, "a/../b")
    assert "give the folder that holds" in refusal(load, folder / "config.json")
    assert resolve(folder) == folder == resolve(str(folder))


def test_the_hub_gives_only_files_that_are_read(folder, monkeypatch):
    asked = []

    def download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    loaded = load("someone/some-model")
    assert loaded.config.name_or_path == loaded.name_or_path == "someone/some-model"
    [(name, patterns)] = asked
    assert name == "someone/some-model"
    assert not [pattern for pattern in patterns if pattern.endswith((".py", ".bin", ".pt", "*"))]


def test_without_the_hub_one_line_says_so(monkeypatch):
    def download(*_, **__):
        raise OSError("cannot reach\nthe hub: " + 100 * "long ")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert "not a folder here, and the hub did not give it (cannot reach the hub" in refusal(load, "some/model")


def test_a_snapshot_in_the_hubs_cache_loads_though_its_files_are_links(folder, tmp_path):
    repository = tmp_path / "hub" / "models--some--model"
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (tmp_path / "hub" / "blobs").mkdir()
    shutil.move(folder / "config.json", repository / "blobs" / "aa")
    (snapshot / "config.json").symlink_to("../../blobs/aa")
    shutil.move(folder / "model.safetensors", tmp_path / "hub" / "blobs" / "bb")
    (repository / "blobs" / "cc").symlink_to("../../blobs/bb")
    (snapshot / "model.safetensors").symlink_to("../../blobs/cc")
    assert torch.equal(logits(load(snapshot)), logits(tiny_model("bert")))


# Saving


def test_an_extra_file_has_a_plain_name_of_its_own(tmp_path):
    for name in ("../x", "a/b", "config.json", "", ".."):
        with pytest.raises(SettingError, match="cannot be the name of an extra file"):
            save_model(tiny_model("bert"), tmp_path / "model", extra_files={name: "text"})
    assert list(tmp_path.iterdir()) == []


def test_saving_replaces_a_former_model_whole(narrow_folder):
    save_model(tiny_model("bert"), narrow_folder)
    assert {path.name for path in narrow_folder.iterdir()} == {"config.json", "model.safetensors", "MANIFEST.json"}
    left = {path.name for path in narrow_folder.parent.iterdir()}
    assert left == {narrow_folder.name}


# Tokenizers

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
    spoil_link(folder, "tokenizer.json")
    assert "leads out of its folder" in refusal(load_tokenizer, folder)
    (folder / "tokenizer.json").unlink()
    with (folder / "tokenizer.json").open("wb") as file:
        file.truncate(2**30)
    assert "1,073,741,824 bytes" in refusal(load_tokenizer, folder)
    (folder / "tokenizer.json").unlink()
    assert "no tokenizer.json" in refusal(load_tokenizer, folder)
