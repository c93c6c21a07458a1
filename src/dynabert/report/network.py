"""What takes the model of a run to find out: the predictions of every Subnet, and attention maps of a few texts.

Both are kept in the run folder, with the fingerprint of the sweep they belong to, so that another report is made at
once, and also where the rows are not at hand.
"""

import base64
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from dynabert.batches import Batch, Batches, encode
from dynabert.elastic import ElasticModel
from dynabert.errors import ModelFileError, StorageError
from dynabert.files import atomic_write_bytes, read_json, write_json
from dynabert.job import Prepared, pick_device
from dynabert.loading import load_tokenizer
from dynabert.measure import Progress, fingerprint_of, labels_of, predict
from dynabert.results import load_result, load_teacher
from dynabert.saved import Saved
from dynabert.studies.attention import attention_maps, rows_of_texts
from dynabert.subnet import Subnet
from dynabert.sweep import Sweep
from dynabert.timing import tell

if TYPE_CHECKING:
    from torch import Tensor

PREDICTIONS_FILE, ATTENTION_FILE = "predictions.safetensors", "attention.json"
FORMAT_VERSION = 1
LABELS, TEACHER = "labels", "teacher"

N_TEXTS, GOOD_LENGTH, MAX_LENGTH = 3, 12, 24
"""Texts with attention maps: how many; the tokens they should have, and have at most (the middle of longer ones is cut
out), so that every token can be read."""

MAX_WEIGHTS = 2_500_000
"""Attention weights that a page holds at most; each takes 4/3 bytes. Of the texts only the first ones are shown that
have no more, and one in any case."""

LEVELS = 255
"""Attention weights are kept as multiples of 1/255."""

log = logging.getLogger("dynabert")


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a run says of its validation rows.

    :param labels: shape (rows,): class numbers, or scores.
    :param logits: (rows, n_labels) of the teacher and of each Subnet, by name.
    """

    labels: np.ndarray
    logits: dict[str, np.ndarray]


@dataclass(frozen=True)
class Maps:
    """The attention maps of a Subnet on one text.

    :param layers: the layers it executes, counted from 0 in the full network.
    :param heads: heads of each.
    :param weights: base64 of a byte for each weight, in 255ths: layer, head, query, key.
    """

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    weights: str


@dataclass(frozen=True)
class AttentionText:
    """A text with its attention maps by the name of the Subnet."""

    text: str
    tokens: tuple[str, ...]
    maps: dict[str, Maps]


@dataclass(frozen=True)
class Attention:
    """Attention maps of a few texts."""

    texts: tuple[AttentionText, ...]


class Network:
    """The model of a finished run with its validation rows, loaded when they are first needed.

    :param out: the run folder.
    :param sweep: what was measured of it.
    :param texts: whose attention maps are asked for; by default a few validation texts are chosen.
    :param progress: told how far the predictions are.
    :param device: where to compute; by default the GPU if there is one.
    """

    def __init__(
        self,
        out: Path,
        sweep: Sweep,
        *,
        texts: Sequence[str] = (),
        progress: Progress | None = None,
        device: str | None = None,
    ) -> None:
        self.out, self.texts, self.progress, self._device = out, tuple(texts), progress, device
        self.fingerprint = sweep.context.fingerprint
        self.subnets = [Subnet.parse(row.subnet) for row in sweep.rows]

    def predictions(self) -> Predictions:
        """The predictions of the teacher and of every Subnet of the sweep, from the run folder or anew.

        :raises DataError: the rows are not those of the run any more.
        :raises ModelFileError: the sweep is of other weights than the folder has now.
        """
        path = self.out / PREDICTIONS_FILE
        names = [TEACHER, *(subnet.name for subnet in self.subnets)]
        if (found := _read_predictions(path, self.fingerprint, names)) is not None:
            return found
        elastic, prepared = self._loaded
        views = {TEACHER: load_teacher(self.out, elastic).at(Subnet())}
        views |= {subnet.name: elastic.at(subnet) for subnet in self.subnets}
        logits = {}
        for done, (name, view) in enumerate(views.items()):
            tell(self.progress, "predict", done, len(views))
            logits[name] = predict(view, prepared.validation)
        tell(self.progress, "predict", len(views), len(views))
        made = Predictions(labels_of(prepared.validation), logits)
        about = {"fingerprint": self.fingerprint, "format_version": str(FORMAT_VERSION)}
        _keep(path, lambda: atomic_write_bytes(path, save({LABELS: made.labels, **made.logits}, about)))
        return made

    def attention(self) -> Attention:
        """The attention maps of every Subnet of the sweep on a few texts, from the run folder or anew.

        Those of texts that were asked for are not kept.

        :raises DataError: the rows are not those of the run any more, or texts that cannot be used.
        :raises ModelFileError: the sweep is of other weights than the folder has now.
        """
        path = self.out / ATTENTION_FILE
        if self.texts:
            return self._attention(self._asked())
        if (found := _read_attention(path, self.fingerprint)) is not None:
            return found
        _, prepared = self._loaded
        made = self._attention(choose_texts(prepared.validation))
        about = {"format_version": FORMAT_VERSION, "fingerprint": self.fingerprint}
        _keep(path, lambda: write_json(path, {**about, **asdict(made)}))
        return made

    def _asked(self) -> list[Batch]:
        """The texts that were asked for, each alone, in their order."""
        _, prepared = self._loaded
        tokenizer, limit = prepared.tokenizer, Saved.of(self.out).plan.batching.max_length
        encoded = encode(tokenizer, rows_of_texts(self.texts), limit)
        batches = Batches(encoded, batch_size=1, seed=0, pad_id=tokenizer.pad_token_id, shuffle=False)
        return sorted(_single(batches), key=lambda row: int(row.ids))

    def _attention(self, rows: list[Batch]) -> Attention:
        """The maps of some texts, as far as a page holds them."""
        elastic, _ = self._loaded
        n_heads = sum(part.n_heads for subnet in self.subnets for part in elastic.slices(subnet))
        totals = np.cumsum([n_heads * row.inputs["input_ids"].numel() ** 2 for row in rows])
        fit = max(1, int((totals <= MAX_WEIGHTS).sum()))
        if self.texts and fit < len(rows):
            log.warning("the report holds the attention maps of the first %d of %d texts", fit, len(rows))
        return Attention(tuple(map(self._maps, rows[:fit])))

    def _maps(self, row: Batch) -> AttentionText:
        elastic, prepared = self._loaded
        ids = row.inputs["input_ids"][0].tolist()
        found = attention_maps(elastic, row.inputs, self.subnets)
        maps = {
            subnet.name: Maps(
                tuple(part.layer for part in elastic.slices(subnet)),
                tuple(part.n_heads for part in elastic.slices(subnet)),
                packed(layers),
            )
            for subnet, layers in found.items()
        }
        text = str(prepared.tokenizer.decode(ids, skip_special_tokens=True)).strip()
        tokens = tuple(str(prepared.tokenizer.decode([token])).strip() or "␣" for token in ids)
        return AttentionText(text, tokens, maps)

    @cached_property
    def _loaded(self) -> tuple[ElasticModel, Prepared]:
        elastic = load_result(self.out)
        prepared = Saved.of(self.out).rows(load_tokenizer(self.out / "elastic"))
        if fingerprint_of(elastic, self.subnets, tuple(prepared.validation)) != self.fingerprint:
            raise ModelFileError(
                f"{self.out} was measured with other weights or rows; run `dynabert measure {self.out}`"
            )
        elastic.to(pick_device(self._device))
        return elastic, prepared


def choose_texts(batches: Iterable[Batch], n_texts: int = N_TEXTS) -> list[Batch]:
    """Rows whose attention can be looked at: of a good length, of different classes as far as there are some.

    :param batches: each row once.
    :return: a batch of one row without padding for each.
    """
    rows = sorted(_single(batches), key=lambda row: (abs(row.inputs["input_ids"].numel() - GOOD_LENGTH), int(row.ids)))
    taken: Counter[float] = Counter()
    chosen: list[Batch] = []
    while rows and len(chosen) < n_texts:
        place = min(range(len(rows)), key=lambda i: (taken[_label(rows[i])], i))
        chosen.append(rows.pop(place))
        taken[_label(chosen[-1])] += 1
    return chosen


def _label(row: Batch) -> float:
    """The class; the rows of a regression are all alike."""
    return 0.0 if row.labels is None or row.labels.is_floating_point() else float(row.labels)


def _single(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Each row alone, without padding, and without the middle of a long one."""
    for batch in batches:
        for place, mask in enumerate(batch.inputs["attention_mask"].bool()):
            inputs = {name: tensor[place][mask] for name, tensor in batch.inputs.items()}
            cut = {name: _without_middle(tensor)[None] for name, tensor in inputs.items()}
            labels = None if batch.labels is None else batch.labels[place : place + 1]
            yield Batch(cut, labels, batch.ids[place : place + 1])


def _without_middle(tokens: "Tensor") -> "Tensor":
    import torch

    return tokens if len(tokens) <= MAX_LENGTH else torch.cat([tokens[: MAX_LENGTH - 1], tokens[-1:]])


def packed(layers: Iterable["Tensor"]) -> str:
    """Attention weights (1, heads, seq, seq) of some layers as base64 of a byte each."""
    parts = [(layer[0].float() * LEVELS).round().byte().cpu().numpy().tobytes() for layer in layers]
    return base64.b64encode(b"".join(parts)).decode()


def _read_predictions(path: Path, fingerprint: str, names: list[str]) -> Predictions | None:
    """What was kept; None where there is nothing, or only that of another sweep."""
    try:
        with safe_open(path, framework="np") as file:
            about = file.metadata() or {}
            if (about.get("fingerprint"), about.get("format_version")) != (fingerprint, str(FORMAT_VERSION)):
                return None
            return Predictions(file.get_tensor(LABELS), {name: file.get_tensor(name) for name in names})
    except (OSError, SafetensorError):
        return None


def _read_attention(path: Path, fingerprint: str) -> Attention | None:
    """What was kept; None where there is nothing, or only that of another sweep."""
    try:
        saved = read_json(path) if path.exists() else {}
        if (saved.get("fingerprint"), saved.get("format_version")) != (fingerprint, FORMAT_VERSION):
            return None
        return Attention(tuple(_text(entry) for entry in saved["texts"]))
    except (AttributeError, KeyError, ModelFileError, TypeError, ValueError):
        return None


def _text(saved: dict[str, Any]) -> AttentionText:
    maps = {
        str(name): Maps(tuple(map(int, entry["layers"])), tuple(map(int, entry["heads"])), str(entry["weights"]))
        for name, entry in saved["maps"].items()
    }
    for entry in maps.values():
        n_weights = sum(entry.heads) * len(saved["tokens"]) ** 2
        if len(entry.layers) != len(entry.heads) or len(base64.b64decode(entry.weights, validate=True)) != n_weights:
            raise ValueError("weights that do not fit the text")
    return AttentionText(str(saved["text"]), tuple(map(str, saved["tokens"])), maps)


def _keep(path: Path, write: Callable[[], None]) -> None:
    """Write what another report can use; one in a folder that cannot be written is made all the same."""
    try:
        write()
    except StorageError as error:
        log.warning("%s is not kept for the next report: %s", path.name, error)
