"""Models and tokenizers from folders and the hub, and back to folders. Nothing that lies in a folder is executed.

The class is chosen by the families table, the configuration is built from the fields that its class declares, and
every tensor is accounted for: a missing or misshapen one is an error, never a random number.
"""

import dataclasses
import shutil
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import torch

from dynabert.cut import Cut
from dynabert.errors import ModelFileError, SettingError, one_of
from dynabert.failures import check_finite
from dynabert.families import FAMILIES, Family
from dynabert.files import write_json
from dynabert.folders import publish_folder
from dynabert.model_files import (
    CONFIG,
    MIB,
    TOKENIZER_CONFIG,
    TOKENIZER_FILES,
    find_file,
    one_line,
    read_object,
    resolve,
    weight_files,
)
from dynabert.modeling import (
    HEADS,
    filled,
    head_of,
    narrow_class,
    narrow_config_class,
    quietly,
    stock_class,
    stock_config_class,
)
from dynabert.subnet import EncoderShape, Subnet
from dynabert.weights import Stored, check_state, count_layers, head_keys, missing_head, open_weights, read_state

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["load", "load_tokenizer", "read_shape", "resolve", "save_model"]

_LABELLED = ("ForSequenceClassification", "ForTokenClassification")
_OTHER_HEADS = (*HEADS[1:], "ForMultipleChoice", "ForNextSentencePrediction")
_MOST_LABELS = 100_000
_MOST_LAYERS = 256
_PROBLEMS = (None, "regression", "single_label_classification", "multi_label_classification")
_LABEL_FIELDS = {"id2label", "label2id", "problem_type"}
_TOKENIZER_LIMIT = 32 * MIB
_TOKENIZER_FIELDS = {
    *(f"{name}_token" for name in ("unk", "sep", "pad", "cls", "mask", "bos", "eos")),
    *("additional_special_tokens", "extra_special_tokens", "added_tokens_decoder", "split_special_tokens"),
    *("do_lower_case", "strip_accents", "tokenize_chinese_chars", "add_prefix_space", "trim_offsets", "errors"),
    *("model_max_length", "model_input_names", "padding_side", "truncation_side", "clean_up_tokenization_spaces"),
}


def load(
    source: str | Path,
    *,
    n_labels: int | None = None,
    problem: Literal["regression"] | None = None,
    head: str | None = "ForSequenceClassification",
    seed: int = 0,
    subnet: "Subnet | str | None" = None,
    pad_heads: bool = False,
) -> "PreTrainedModel":
    """Load a model of a known family, stock or extracted, without executing anything of its folder.

    With `subnet` it is one size of an elastic model, as `ElasticModel.extract` gives it, and nothing else of the
    folder's weights is read: memory and reading are those of the small model.

    Where the checkpoint has no such head, or one for another number of labels, the head (for a new number of labels
    only its last layer) starts from random numbers of `seed`, and a line is logged. Nothing else ever does.

    :param source: a folder, or the name of a hub repository.
    :param n_labels: outputs of a classification head; by default as many as the checkpoint says.
    :param problem: ``"regression"`` for one real-valued output; by default what the checkpoint says.
    :param head: a name in `HEADS`; None takes the one that the checkpoint was saved with, or the encoder alone.
    :param seed: of the numbers that a new head starts from; no global generator is touched.
    :param subnet: the size, or its name, such as ``w0.5-d0.75``; None loads all that the folder has.
    :param pad_heads: of a size, keep the place of the heads that are cut, see `ElasticModel.extract`.
    :return: the model, in float32 on the CPU, in evaluation mode; it owns its weights.
    :raises SettingError: an unknown family or head, or settings that exclude each other.
    :raises ModelFileError: a folder that is missing, damaged, or in a format that is not read.
    """
    if pad_heads and subnet is None:
        raise SettingError("pad_heads is of a size; give a subnet, for instance w0.5-d0.75")
    folder = resolve(source)
    fields = _fields(folder)
    family, narrow = _family(fields.get("model_type"))
    saved = _saved_class(fields)
    head = head or head_of(saved, family) or "Model"
    model_class = (narrow_class if narrow else stock_class)(family, head)
    new_labels = _set_labels(fields, n_labels, problem, head, folder)
    config = _config(folder, fields, (narrow_config_class if narrow else stock_config_class)(family))
    config.architectures = [model_class.__name__]
    with open_weights(weight_files(folder), model_class.base_model_prefix) as stored:
        if any(saved.endswith(other) for other in _OTHER_HEADS if other != head):
            for key in head_keys(stored):
                del stored[key]
        skeleton = _skeleton(folder, model_class, config, stored)
        replaced = _last_layer(head_keys(stored)) if new_labels else frozenset()
        cut = None
        if subnet is not None:
            check_state(stored, skeleton, where=folder, replaced=replaced)
            cut = Cut.of(folder, skeleton.config, family, subnet, pad_heads=pad_heads)
            model_class, config = cut.small(skeleton.config, head)
            stored = cut.wanted(stored)
            skeleton = _skeleton(folder, model_class, config, stored)
        state = read_state(stored, skeleton, where=folder, replaced=replaced, seed=seed)
    model = filled(model_class, config, state, dtype=torch.float32)
    if cut is not None:
        cut.finish(model)
    model.name_or_path = model.config.name_or_path = str(source)
    return model


def has_head(source: str | Path, head: str) -> bool:
    """Whether a checkpoint holds the weights of a head, so that `load` starts none of it from random numbers.

    :param source: as in `load`.
    :param head: a name in `HEADS`.
    :raises SettingError: an unknown family or head.
    :raises ModelFileError: a folder that is missing, damaged, or in a format that is not read.
    """
    folder = resolve(source)
    fields = _fields(folder)
    family, narrow = _family(fields.get("model_type"))
    model_class = (narrow_class if narrow else stock_class)(family, head)
    _set_labels(fields, None, None, head, folder)
    config = _config(folder, fields, (narrow_config_class if narrow else stock_config_class)(family))
    with open_weights(weight_files(folder), model_class.base_model_prefix) as stored:
        return not missing_head(stored, _skeleton(folder, model_class, config, stored))


def read_shape(folder: Path) -> tuple[Family, EncoderShape, str]:
    """What a full model's folder says of it, without its weights: its family, its sizes, and its head.

    :param folder: see `resolve`.
    :return: the head is a name in `HEADS`.
    :raises SettingError: an unknown family.
    :raises ModelFileError: no model, one that was cut out of another one, or a damaged one.
    """
    fields = _fields(folder)
    family, narrow = _family(fields.get("model_type"))
    if narrow:
        raise ModelFileError(f"{folder} is one size already; give the folder or hub name of an elastic model")
    config = _config(folder, fields, stock_config_class(family))
    return family, family.shape(config), head_of(_saved_class(fields), family) or "Model"


def _fields(folder: Path) -> dict[str, Any]:
    fields = read_object(folder, CONFIG)
    if fields is None:
        raise ModelFileError(f"{folder} has no {CONFIG}; give the folder of a Hugging Face model")
    return fields


def _family(model_type: object) -> tuple[Family, bool]:
    """The row of a `model_type`, and whether it is the narrow one of the family."""
    for family in FAMILIES.values():
        if model_type in (family.model_type, family.narrow_model_type):
            return family, model_type == family.narrow_model_type
    value = model_type[:80] if isinstance(model_type, str) else None
    raise SettingError(one_of("model family", value, FAMILIES, hint="Choose a checkpoint of a known family"))


def _saved_class(fields: dict[str, Any]) -> str:
    names = fields.get("architectures")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""


def _set_labels(fields: dict[str, Any], n_labels: int | None, problem: str | None, head: str, folder: Path) -> bool:
    """Put the labels that are asked for into the fields; say whether they are others than the checkpoint's."""
    if problem not in (None, "regression"):
        raise SettingError(one_of("problem", problem, ["regression"], hint="Leave it out for classification"))
    if problem and n_labels is None:
        n_labels = 1
    if problem and n_labels != 1:
        raise SettingError(f"n_labels {n_labels} does not go with regression, which has 1 output")
    if n_labels is not None and head not in _LABELLED:
        raise SettingError(f"n_labels {n_labels} does not go with head {head!r}; heads with labels: {_LABELLED}")
    if n_labels is not None and not 1 <= n_labels <= _MOST_LABELS:
        raise SettingError(f"n_labels {n_labels} is outside 1 to {_MOST_LABELS:,}")
    labels = saved = _saved_labels(fields, folder)
    if n_labels not in (None, len(saved)):
        labels = {index: f"LABEL_{index}" for index in range(n_labels)}
        fields["problem_type"] = None
    fields["id2label"] = labels
    fields["label2id"] = {name: index for index, name in labels.items()}
    if problem:
        fields["problem_type"] = problem
    return labels is not saved


def _saved_labels(fields: dict[str, Any], folder: Path) -> dict[int, str]:
    """The names of the labels by number, as the configuration gives them, or numbered ones."""
    names = fields.get("id2label")
    if not names:
        n_labels = fields.get("num_labels", 2)
        if type(n_labels) is not int or not 1 <= n_labels <= _MOST_LABELS:
            raise ModelFileError(f"{folder / CONFIG}: num_labels {n_labels!r:.40} is outside 1 to {_MOST_LABELS:,}")
        return {index: f"LABEL_{index}" for index in range(n_labels)}
    try:
        return {int(number): str(name) for number, name in names.items()}
    except (AttributeError, ValueError) as error:
        raise ModelFileError(f"{folder / CONFIG}: id2label {names!r:.40} must name labels by number") from error


def _config(folder: Path, fields: dict[str, Any], config_class: "type[PretrainedConfig]") -> "PretrainedConfig":
    """A configuration from the fields that its class declares itself, and the labels.

    All else is left out: the fields of the base class and unknown ones can choose code, kernels and types.
    """
    from transformers import PretrainedConfig

    path = folder / CONFIG
    if fields.get("quantization_config"):
        raise ModelFileError(f"{path}: the model is quantised; give the original one")
    problem = fields.get("problem_type")
    if problem not in _PROBLEMS:
        raise ModelFileError(f"{path}: problem_type {problem!r:.40} is unknown; known: {', '.join(_PROBLEMS[1:])}")
    positions = fields.get("position_embedding_type", "absolute")
    if positions != "absolute":
        raise ModelFileError(f"{path}: positions are {positions!r:.40}; give a model with absolute ones")
    if fields.get("is_decoder") or fields.get("add_cross_attention"):
        raise ModelFileError(f"{path}: the model is a decoder; give an encoder")
    own = {field.name for field in dataclasses.fields(config_class)}
    own -= {field.name for field in dataclasses.fields(PretrainedConfig)}
    try:
        return config_class(**{name: fields[name] for name in fields.keys() & (own | _LABEL_FIELDS)})
    except Exception as error:  # whatever a value of the wrong kind makes transformers raise
        raise ModelFileError(f"{path} cannot be used: {one_line(error)}") from error


def _skeleton(
    folder: Path, model_class: "type[PreTrainedModel]", config: "PretrainedConfig", stored: dict[str, Stored]
) -> "PreTrainedModel":
    """The model without memory for its weights: names and shapes as the configuration says."""
    n_layers = count_layers(stored)
    if config.num_hidden_layers != n_layers:
        raise ModelFileError(
            f"{folder / CONFIG} says {config.num_hidden_layers} layers, the weights have {n_layers}; "
            f"use another copy of the folder"
        )
    if n_layers > _MOST_LAYERS:
        raise ModelFileError(f"{folder} has {n_layers} layers, more than the {_MOST_LAYERS} that are read")
    try:
        with torch.device("meta"):
            return model_class(deepcopy(config))
    except Exception as error:  # whatever sizes that cannot be make torch and transformers raise
        raise ModelFileError(f"{folder / CONFIG} cannot be used: {one_line(error)}") from error


def _last_layer(keys: list[str]) -> frozenset[str]:
    """Of the tensors of a classification head, those with one row for each label."""
    last = frozenset(key for key in keys if key.startswith("classifier.out_proj."))
    return last or frozenset(key for key in keys if key.startswith("classifier."))


def load_tokenizer(source: str | Path) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of a model folder without executing anything of it.

    Its class is that of the family that the folder names, or the general one around ``tokenizer.json``. It works on a
    copy of the tokenizer's files, and of its settings only those that a tokenizer of a known family has.

    :param source: a folder, or the name of a hub repository.
    :raises ModelFileError: no tokenizer there, or a damaged one.
    """
    folder = resolve(source)
    found = {name: find_file(folder, name, limit=_TOKENIZER_LIMIT) for name in TOKENIZER_FILES}
    files = {name: path for name, path in found.items() if path is not None}
    settings = read_object(folder, TOKENIZER_CONFIG) or {}
    tokenizer_class = _tokenizer_class(folder, settings.get("tokenizer_class"), set(files))
    with TemporaryDirectory(prefix="dynabert-") as copy:
        for name, path in files.items():
            shutil.copyfile(path, Path(copy) / name)
        kept = {name: value for name, value in settings.items() if name in _TOKENIZER_FIELDS}
        try:
            write_json(Path(copy) / TOKENIZER_CONFIG, kept)
            tokenizer = tokenizer_class.from_pretrained(copy, local_files_only=True)
        except Exception as error:  # whatever a damaged file makes the tokenizer libraries raise
            raise ModelFileError(f"the tokenizer of {folder} cannot be used: {one_line(error)}") from error
    tokenizer.name_or_path = tokenizer.init_kwargs["name_or_path"] = str(source)
    for name in ("is_local", "local_files_only"):  # of this call; they would be saved with the tokenizer
        tokenizer.init_kwargs.pop(name, None)
    return tokenizer


def _tokenizer_class(folder: Path, named: object, files: set[str]) -> "type[PreTrainedTokenizerBase]":
    import transformers

    families = {f"{family.classes}Tokenizer": family for family in FAMILIES.values()}
    if named is None:
        model_type = (read_object(folder, CONFIG) or {}).get("model_type")
        pairs = ((name, (row.model_type, row.narrow_model_type)) for name, row in families.items())
        named = next((name for name, model_types in pairs if model_type in model_types), "")
    name = str(named).removesuffix("Fast")
    by_itself = {"BertTokenizer": {"vocab.txt"}, "RobertaTokenizer": {"vocab.json", "merges.txt"}}
    if "tokenizer.json" not in files and not (name in by_itself and by_itself[name] <= files):
        raise ModelFileError(
            f"{folder} has no tokenizer.json; if you trust the folder, load its tokenizer with transformers and save "
            f"it with save_pretrained"
        )
    return getattr(transformers, name if name in families else "PreTrainedTokenizerFast")


def save_model(
    model: "PreTrainedModel",
    folder: str | Path,
    *,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    extra_files: Mapping[str, str] | None = None,
) -> None:
    """Write a Hugging Face folder that appears whole, with a manifest, or not at all.

    A narrow model brings the code of its classes along, so the folder loads without dynabert as well.

    :param model: a stock or narrow model of a known family.
    :param folder: where to; an earlier one is replaced.
    :param tokenizer: saved beside the model if given.
    :param extra_files: more text files, by plain file name.
    :raises SettingError: an extra file whose name is a path, or that of a file of the model.
    :raises NonFiniteError: a weight is NaN or infinite; nothing is written.
    :raises StorageError: disk full, no permission or an I/O error.
    """
    check_finite(dict(model.named_parameters()), Path(folder))
    with publish_folder(folder) as temporary:
        with quietly():
            model.save_pretrained(temporary)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
        for name, text in (extra_files or {}).items():
            if Path(name).name != name or (temporary / name).exists():
                raise SettingError(f"{name!r} cannot be the name of an extra file; give a plain name of its own")
            (temporary / name).write_text(text, encoding="utf-8")
