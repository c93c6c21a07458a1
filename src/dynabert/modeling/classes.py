"""Which class holds an extracted model. Classes are found by the families table, never by what a folder says."""

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dynabert.errors import SettingError, one_of
from dynabert.families import Family, family_of
from dynabert.subnet import EncoderShape, LayerSlice

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel

HEADS = ("Model", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMaskedLM")
"""Task heads, by the ending of their class names; ``Model`` is the encoder alone."""


def stock_class(family: Family, head: str) -> "type[PreTrainedModel]":
    """The class of transformers for a family and a head.

    :param family: a row of `FAMILIES`.
    :param head: a name in `HEADS`.
    :raises SettingError: an unknown head.
    """
    _check_head(head)
    return _attribute("transformers", f"{family.classes}{head}")


def narrow_class(family: Family, head: str) -> "type[PreTrainedModel]":
    """The class for models of a family that have fewer heads, or layers that differ in their neurons.

    :param family: a row of `FAMILIES`.
    :param head: a name in `HEADS`.
    :raises SettingError: an unknown head.
    """
    _check_head(head)
    return _attribute(_module("modeling", family), f"DynaBert{family.classes}{head}")


def stock_config_class(family: Family) -> "type[PretrainedConfig]":
    """The configuration class of transformers for a family."""
    return _attribute("transformers", f"{family.classes}Config")


def narrow_config_class(family: Family) -> "type[PretrainedConfig]":
    """The configuration class for narrow models of a family."""
    return _attribute(_module("configuration", family), f"DynaBert{family.classes}Config")


def head_of(class_name: str, family: Family) -> str | None:
    """The head of a class name, stock or narrow, of a family; None where it is not one of ours.

    :param class_name: for instance ``BertForSequenceClassification``.
    :param family: a row of `FAMILIES`.
    :return: a name in `HEADS`, for instance ``ForSequenceClassification``.
    """
    head = class_name.removeprefix("DynaBert").removeprefix(family.classes)
    return head if head in HEADS else None


def is_stock(shape: EncoderShape, slices: tuple[LayerSlice, ...]) -> bool:
    """Whether stock classes can hold an encoder cut to these slices: all heads kept, the same neurons in every layer.

    :param shape: the full encoder.
    :param slices: what is kept of it.
    """
    return all(part.n_heads == shape.n_heads for part in slices) and len({part.n_neurons for part in slices}) == 1


LOADERS = {True: "transformers", False: "dynabert or trust_remote_code"}
"""What loads an extracted model, by whether a stock class can hold it."""


def loads_with(shape: EncoderShape, slices: tuple[LayerSlice, ...]) -> str:
    """What can load an extracted model: stock transformers, or dynabert (without it: ``trust_remote_code``)."""
    return LOADERS[is_stock(shape, slices)]


def auto_class(head: str) -> str:
    """The Auto class of transformers that loads models with a head.

    :raises SettingError: an unknown head.
    """
    from dynabert.modeling.narrow import HEADS as AUTO_CLASSES

    _check_head(head)
    return AUTO_CLASSES[head]


def small_class(
    family: Family, head: str, shape: EncoderShape, slices: tuple[LayerSlice, ...]
) -> "type[PreTrainedModel]":
    """The class of an encoder cut to these slices: stock where `is_stock`, else the family's narrow one.

    :raises SettingError: an unknown head.
    """
    return (stock_class if is_stock(shape, slices) else narrow_class)(family, head)


def small_config(
    config: "PretrainedConfig",
    family: Family,
    shape: EncoderShape,
    slices: tuple[LayerSlice, ...],
    *,
    subnet_name: str,
    head: str,
) -> "PretrainedConfig":
    """The configuration of an encoder cut to these slices; the one given stays as it is.

    :param config: stock configuration of the full model or of a view of it; labels, dropout, choice of attention
        kernel and the rest are taken over.
    :param family: its row of `FAMILIES`.
    :param shape: the full encoder.
    :param slices: what is kept of it.
    :param subnet_name: recorded in a narrow configuration.
    :param head: a name in `HEADS`; the model class that the configuration is for.
    :return: a stock configuration with fewer layers and neurons where `is_stock`, else a narrow one.
    :raises SettingError: an unknown head, or a configuration that is not the family's stock one.
    """
    if config.model_type != family.model_type:
        raise SettingError(f"a {config.model_type!r} configuration is not the stock one of {family.model_type}")
    stock = is_stock(shape, slices)
    fields = config.to_dict()
    for name in ("auto_map", "model_type", "_name_or_path"):
        fields.pop(name, None)
    fields["attn_implementation"] = config._attn_implementation
    fields["num_hidden_layers"] = len(slices)
    fields["architectures"] = [small_class(family, head, shape, slices).__name__]
    if stock:
        fields["intermediate_size"] = slices[0].n_neurons
        return stock_config_class(family)(**fields)
    fields["head_dim"] = shape.head_dim
    fields["kept"] = [[part.n_heads, part.n_neurons] for part in slices]
    fields["subnet"] = subnet_name
    return narrow_config_class(family)(**fields)


def small_model(
    view: "PreTrainedModel",
    state: "Mapping[str, Tensor]",
    *,
    slices: tuple[LayerSlice, ...],
    shape: EncoderShape,
    subnet_name: str,
) -> "PreTrainedModel":
    """A dense model that owns these weights: of a stock class where `is_stock`, else of the family's narrow class.

    :param view: a model of a known family whose class, labels, kernel, device and mode the small one takes over.
    :param state: the cut weights by the names of the view; taken over, not copied.
    :param slices: what is kept.
    :param shape: the full encoder.
    :param subnet_name: recorded in a narrow configuration.
    :raises SettingError: a family or task head that is not in the tables.
    """
    family = family_of(view.config.model_type)
    head = head_of(type(view).__name__, family)
    if head is None:
        known = (f"{family.classes}{name}" for name in HEADS)
        raise SettingError(one_of("model class", type(view).__name__, known))
    config = small_config(view.config, family, shape, slices, subnet_name=subnet_name, head=head)
    model = filled(small_class(family, head, shape, slices), config, state, dtype=view.dtype)
    model.to(view.device)  # type: ignore[arg-type]
    return model.train(view.training)


def filled(
    model_class: "type[PreTrainedModel]",
    config: "PretrainedConfig",
    state: Mapping[str, "Tensor"],
    *,
    dtype: "torch.dtype",
) -> "PreTrainedModel":
    """A model on the CPU around these tensors, in evaluation mode.

    It is built on the meta device, so nothing is initialised at random and nothing is held twice.

    :param model_class: a stock or narrow class.
    :param config: its configuration; copied.
    :param state: every tensor of the model by name, tied ones once; taken over, not copied.
    :param dtype: of the model.
    """
    with quietly():
        return model_class.from_pretrained(None, config=config, state_dict=dict(state), dtype=dtype)


@contextmanager
def quietly() -> Iterator[None]:
    """Hide transformers' progress bars: reading or writing one small file needs none."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _check_head(head: str) -> None:
    if head not in HEADS:
        raise SettingError(one_of("head", head, HEADS))


def _module(kind: str, family: Family) -> str:
    return f"dynabert.modeling.{kind}_dynabert_{family.model_type.replace('-', '_')}"


def _attribute(module: str, name: str) -> type:
    return getattr(importlib.import_module(module), name)
