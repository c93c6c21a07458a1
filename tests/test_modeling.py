import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cutting import NARROW, STOCK, cut_model, cut_state, silenced_model
from helpers import FAMILY_NAMES, VOCAB, tiny_batch, tiny_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification, BertForMultipleChoice, BertTokenizer

from dynabert import modeling
from dynabert.errors import SettingError
from dynabert.families import FAMILIES
from dynabert.loading import save_model
from dynabert.subnet import EncoderShape, LayerSlice

SHAPE = EncoderShape(n_layers=4, n_heads=4, head_dim=16, hidden=64, n_neurons=64)
SIZES = {"vocab_size": 48, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 64}


def logits(model, batch=None):
    with torch.no_grad():
        return model(**(batch or tiny_batch()).inputs).logits


def config_of(family="bert", **fields):
    return modeling.narrow_config_class(FAMILIES[family])(**{**SIZES, **fields})


@pytest.mark.parametrize("slices", [NARROW, STOCK], ids=["narrow", "stock"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_small_model_computes_what_the_silenced_full_one_does(family, attention, slices):
    full = tiny_model(family, attention=attention)
    small = cut_model(full, slices)
    assert torch.allclose(logits(small), logits(silenced_model(full, slices)), atol=1e-5)
    assert (logits(small) - logits(full)).abs().max() > 1e-2  # and that is another function than the full one


def test_hidden_states_and_attentions_are_those_of_the_kept_layers_and_heads():
    small = cut_model(tiny_model("bert", attention="eager"), NARROW)
    with torch.no_grad():
        output = small(**tiny_batch().inputs, output_hidden_states=True, output_attentions=True)
    assert len(output.hidden_states) == len(NARROW) + 1
    assert [weights.shape[1] for weights in output.attentions] == [part.n_heads for part in NARROW]


@pytest.mark.parametrize("slices", [NARROW, STOCK], ids=["narrow", "stock"])
def test_a_small_model_has_the_weights_it_was_given_and_nothing_else(slices):
    full = tiny_model("roberta")
    state, before = cut_state(full, slices), torch.get_rng_state()
    small = cut_model(full, slices)
    assert small.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in small.state_dict().items())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("training", [True, False])
def test_a_small_model_takes_over_mode_kernel_type_and_labels(training):
    full = tiny_model("camembert", attention="eager", dtype=torch.float64).train(training)
    full.config.id2label, full.config.label2id = {0: "a", 1: "b", 2: "c"}, {"a": 0, "b": 1, "c": 2}
    for slices in (NARROW, STOCK):
        small = cut_model(full, slices)
        assert small.training is training
        assert small.config._attn_implementation == "eager"
        assert small.dtype == torch.float64
        assert (small.config.id2label, small.config.label2id) == (full.config.id2label, full.config.label2id)


def test_a_model_of_an_unknown_class_is_refused():
    config = tiny_model("bert").config
    model = BertForMultipleChoice(config)
    shape = FAMILIES["bert"].shape(config)
    with pytest.raises(SettingError, match=r"BertForMultipleChoice.*known: BertModel"):
        modeling.small_model(model, model.state_dict(), slices=STOCK, shape=shape, subnet_name="x")


@pytest.mark.parametrize(
    ("slices", "stock"),
    [
        ((LayerSlice(0, 4, 64), LayerSlice(3, 4, 64)), True),
        ((LayerSlice(0, 4, 16), LayerSlice(1, 4, 16)), True),
        ((LayerSlice(0, 4, 16), LayerSlice(1, 4, 32)), False),
        ((LayerSlice(0, 4, 64), LayerSlice(1, 3, 64)), False),
        ((LayerSlice(0, 2, 32), LayerSlice(1, 2, 32)), False),
    ],
)
def test_stock_means_all_heads_and_one_number_of_neurons(slices, stock):
    assert modeling.is_stock(SHAPE, slices) is stock


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_configurations_say_what_was_kept_and_leave_the_original_alone(family):
    row = FAMILIES[family]
    config = tiny_model(family).config
    before = config.to_dict()
    arguments = {"subnet_name": "w0.5-d0.75", "head": "ForSequenceClassification"}
    narrow = modeling.small_config(config, row, SHAPE, NARROW, **arguments)
    stock = modeling.small_config(config, row, SHAPE, STOCK, **arguments)
    assert config.to_dict() == before
    assert type(stock) is type(config)
    assert (stock.num_hidden_layers, stock.intermediate_size, stock.num_attention_heads) == (2, 32, 4)
    assert "kept" not in stock.to_dict() and "auto_map" not in stock.to_dict()
    assert narrow.model_type == f"dynabert-{family}"
    assert narrow.kept == [[2, 24], [1, 64], [4, 16]]
    assert (narrow.head_dim, narrow.subnet, narrow.num_hidden_layers) == (16, "w0.5-d0.75", 3)
    assert (narrow.num_attention_heads, narrow.intermediate_size) == (4, 64)
    assert narrow.auto_map.keys() >= {"AutoConfig", "AutoModel", "AutoModelForSequenceClassification"}
    assert narrow.architectures == [f"DynaBert{row.classes}ForSequenceClassification"]
    again = type(narrow).from_dict(json.loads(narrow.to_json_string()))
    assert again.to_dict() == narrow.to_dict()


def test_only_the_familys_stock_configuration_can_be_cut():
    with pytest.raises(SettingError, match="'dynabert-bert' configuration is not the stock one of bert"):
        modeling.small_config(config_of(), FAMILIES["bert"], SHAPE, STOCK, subnet_name="x", head="Model")


def test_without_sizes_a_narrow_configuration_describes_the_stock_model():
    config = config_of()
    assert (config.head_dim, config.kept) == (8, [[4, 64], [4, 64]])


@pytest.mark.parametrize(
    "fields",
    [
        {"kept": [[1, 2]]},
        {"kept": [[1, 2], [3]]},
        {"kept": [[1, True], [1, 1]]},
        {"kept": [[0, 1], [1, 1]]},
        {"kept": [[1.5, 1], [1, 1]]},
        {"kept": [[5, 1], [1, 1]]},
        {"kept": [[1, 65], [1, 1]]},
        {"kept": "ab"},
        {"head_dim": 7},
        {"head_dim": "8"},
        {"num_attention_heads": 0},
        {"subnet": 3},
        {"is_decoder": True},
        {"add_cross_attention": True},
    ],
    ids=str,
)
def test_sizes_that_cannot_be_are_refused_in_one_line(fields):
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        config_of(**fields)


@pytest.mark.parametrize("head", modeling.HEADS)
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_every_family_has_a_narrow_class_for_every_head(family, head):
    row = FAMILIES[family]
    narrow = modeling.narrow_class(row, head)
    config = config_of(family, kept=[[1, 16], [3, 48]])
    with torch.device("meta"):
        model = narrow(config)
        stock = modeling.stock_class(row, head)(modeling.stock_config_class(row)(**SIZES))
    assert issubclass(narrow, type(stock))
    assert modeling.head_of(narrow.__name__, row) == modeling.head_of(type(stock).__name__, row) == head
    assert model.state_dict().keys() == stock.state_dict().keys()
    assert [layer.attention.self.query.out_features for layer in model.base_model.encoder.layer] == [8, 24]
    assert model.all_tied_weights_keys == stock.all_tied_weights_keys


def test_an_unknown_head_names_the_known_ones():
    for find in (modeling.stock_class, modeling.narrow_class):
        with pytest.raises(SettingError, match=r"did you mean 'ForMaskedLM'.*ForSequenceClassification"):
            find(FAMILIES["bert"], "ForMaskedLm")


@pytest.mark.parametrize("register", [modeling.register, modeling.register_when_needed])
def test_auto_classes_find_narrow_models(register, tmp_path):
    register()
    register()
    small = cut_model(tiny_model("xlm-roberta"), NARROW)
    save_model(small, tmp_path / "model")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert type(loaded) is type(small)
    assert torch.equal(logits(loaded), logits(small))
    body = AutoModel.from_pretrained(tmp_path / "model", trust_remote_code=True)  # which ours do not need
    assert type(body).__module__ == "dynabert.modeling.modeling_dynabert_xlm_roberta"


def run(program, *arguments, **environment):
    """Run a program in a fresh process that cannot reach the hub; what it prints last is JSON."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def tiny_tokenizer():
    words = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]", *(f"word{index}" for index in range(VOCAB - 5))]
    return BertTokenizer(vocab={word: index for index, word in enumerate(words)})


STRANGER = """
import json, sys
sys.modules["dynabert"] = None  # as if it were not installed
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, pipeline
out, *folders = sys.argv[1:]
inputs = load_file(f"{out}/inputs.safetensors")
report = {}
for index, folder in enumerate(folders):
    trust = {"trust_remote_code": True} if folder.endswith("narrow") else {}
    model, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True, **trust)
    assert not any(info.values()), info
    save_file({"logits": model(**inputs).logits.detach()}, f"{out}/{index}.safetensors")
    body = AutoModel.from_pretrained(folder, **trust)
    tokenizer = AutoTokenizer.from_pretrained(folder, **trust)
    classify = pipeline("text-classification", model=folder, **trust)
    answer = classify("word1 word2")[0]
    model.save_pretrained(f"{folder}-again")
    report[folder] = [type(model).__name__, type(body).__name__, tokenizer("word1")["input_ids"], answer["label"]]
print(json.dumps(report))
"""


def test_saved_models_load_where_dynabert_is_not_installed(tmp_path):
    folders, models = [], []
    for slices, name in ((NARROW, "narrow"), (STOCK, "stock")):
        folders.append(str(tmp_path / name))
        models.append(cut_model(tiny_model("bert"), slices))
        save_model(models[-1], folders[-1], tokenizer=tiny_tokenizer())
    save_file(tiny_batch().inputs, tmp_path / "inputs.safetensors")
    report = run(STRANGER, tmp_path, *folders, HF_HOME=str(tmp_path / "home"))
    for index, (folder, model) in enumerate(zip(folders, models, strict=True)):
        name, body, tokens, label = report[folder]
        assert name == type(model).__name__
        assert body == name.replace("ForSequenceClassification", "Model")
        assert tokens == [0, 6, 2] and label.startswith("LABEL_")
        got = load_file(tmp_path / f"{index}.safetensors")["logits"]
        assert torch.allclose(got, logits(model), atol=1e-5)
    again = {path.name for path in Path(f"{folders[0]}-again").iterdir()}
    assert again >= {"narrow.py", "modeling_dynabert_bert.py", "configuration_dynabert_bert.py"}


FRIEND = """
import json, sys
from dynabert.modeling import register_when_needed
register_when_needed()
register_when_needed()
assert not {"torch", "transformers"} & set(sys.modules), "importing dynabert must stay light"
from transformers import BertConfig  # imports the Auto classes while its own module is half imported
from transformers import AutoConfig, AutoTokenizer, pipeline
import transformers.models.auto.configuration_auto as watched
assert type(watched.__loader__) is type(watched.__spec__.loader) is type(json.__loader__)
assert "dynabert.modeling.modeling_dynabert_bert" not in sys.modules, "nothing was asked for yet"
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
classify = pipeline("text-classification", model=sys.argv[1])
print(json.dumps([type(classify.model).__module__, classify("word1 word2")[0]["label"]]))
"""


@pytest.mark.slow
def test_auto_classes_find_narrow_models_after_importing_dynabert_alone(tmp_path):
    save_model(cut_model(tiny_model("bert"), NARROW), tmp_path / "model", tokenizer=tiny_tokenizer())
    module, label = run(FRIEND, tmp_path / "model")
    assert module == "dynabert.modeling.modeling_dynabert_bert"
    assert label.startswith("LABEL_")
