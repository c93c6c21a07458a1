"""Layers of different sizes over the stock encoders of transformers.

This file and its neighbours `configuration_dynabert_*` and `modeling_dynabert_*` travel next to the weights of an
extracted model, so they import torch, transformers and each other alone. Each model stays the stock class with the
stock forward: attention reads its number of heads off the width of the projected tensor, so only the six linear maps of
a layer are replaced.
"""

from typing import Any

from torch import nn
from transformers import PretrainedConfig

HEADS = {
    "Model": "AutoModel",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
    "ForQuestionAnswering": "AutoModelForQuestionAnswering",
    "ForMaskedLM": "AutoModelForMaskedLM",
}
"""Ending of a class name, and the Auto class that finds it."""


def auto_map(module: str, classes: str) -> dict[str, str]:
    """Where transformers finds the classes of a family in a folder that carries these files.

    :param module: family as it stands in the file names, ``xlm_roberta``.
    :param classes: prefix of the class names, ``DynaBertXLMRoberta``.
    """
    found = {auto: f"modeling_dynabert_{module}.{classes}{head}" for head, auto in HEADS.items()}
    return {"AutoConfig": f"configuration_dynabert_{module}.{classes}Config", **found}


def complete(config: PretrainedConfig) -> None:
    """Fill in what a narrow configuration leaves out, and refuse sizes that cannot be.

    Without `head_dim` and `kept` nothing is cut, so the defaults describe the stock model.

    :raises ValueError: head_dim times heads is not hidden, a layer keeps more than there is, or it is a decoder.
    """
    n_heads, n_neurons = config.num_attention_heads, config.intermediate_size
    if config.head_dim is None and n_heads > 0:
        config.head_dim = config.hidden_size // n_heads
    if not _is_count(config.head_dim) or config.head_dim * n_heads != config.hidden_size:
        raise ValueError(f"head_dim {config.head_dim!r} times {n_heads} heads is not hidden_size {config.hidden_size}")
    if config.kept is None:
        config.kept = [[n_heads, n_neurons] for _ in range(config.num_hidden_layers)]
    if not isinstance(config.kept, list) or len(config.kept) != config.num_hidden_layers:
        raise ValueError(f"kept must list [heads, neurons] for each of the {config.num_hidden_layers} layers")
    for index, sizes in enumerate(config.kept):
        if not (isinstance(sizes, list) and len(sizes) == 2 and _is_count(sizes[0]) and _is_count(sizes[1])):
            raise ValueError(f"kept[{index}] {sizes!r:.80} must be [heads, neurons], two whole numbers from 1")
        if sizes[0] > n_heads or sizes[1] > n_neurons:
            raise ValueError(f"kept[{index}] {sizes} exceeds the original {n_heads} heads and {n_neurons} neurons")
    if config.subnet is not None and not isinstance(config.subnet, str):
        raise ValueError(f"subnet {config.subnet!r:.80} must be the name of a Subnet, a text")
    if config.is_decoder or config.add_cross_attention:
        raise ValueError("a narrow model is an encoder: is_decoder and add_cross_attention must be false")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


class NarrowLayers:
    """Put this before a stock class: every layer gets the heads and neurons that ``config.kept`` says.

    Layer i has query, key and value maps of ``kept[i][0] * head_dim`` outputs, an attention output map of as many
    inputs, and ``kept[i][1]`` neurons. Hidden features, norms, embeddings and the task head keep their size.
    """

    def __init__(self, config: PretrainedConfig, *args: object, **kwargs: object) -> None:
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        layers = self.base_model.encoder.layer  # type: ignore[attr-defined]
        for layer, (n_heads, n_neurons) in zip(layers, config.kept, strict=True):
            _narrow(layer, config.hidden_size, n_heads, config.head_dim, n_neurons)
        self.post_init()  # type: ignore[attr-defined]


def _narrow(layer: nn.Module, hidden: int, n_heads: int, head_dim: int, n_neurons: int) -> None:
    attended = n_heads * head_dim
    attention: Any = layer.attention
    attention.self.query = nn.Linear(hidden, attended)
    attention.self.key = nn.Linear(hidden, attended)
    attention.self.value = nn.Linear(hidden, attended)
    attention.self.num_attention_heads = n_heads
    attention.self.all_head_size = attended
    attention.output.dense = nn.Linear(attended, hidden)
    feed_forward: Any = layer
    feed_forward.intermediate.dense = nn.Linear(hidden, n_neurons)
    feed_forward.output.dense = nn.Linear(n_neurons, hidden)
