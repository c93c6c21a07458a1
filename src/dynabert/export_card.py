"""The README of an exported folder: what it is, how good, and how it is run where dynabert is not installed."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dynabert.card_parts import Origin, bullets, machine_line, origin_lines, table
from dynabert.engines import engine_of
from dynabert.exported import FULL_BITS, SAFE_BITS, Exported, ExportIndex
from dynabert.files import read_json
from dynabert.measurement import Agreement
from dynabert.model_files import EXPORT_FILE

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

_TOKENIZER = "tokenizer.json"
_TAGS = {"onnxruntime": "onnx", "openvino": "openvino"}
_MOST_TOKENS = 10**6  # a larger number in a tokenizer's configuration says that it has no limit
_BITS = {
    FULL_BITS: "Weights in 8 bits: on an x86 processor without VNNI their sums can overflow; for it, export on one",
    SAFE_BITS: "Weights in 7 bits, whose sums overflow on no processor",
}
_VALUES = {"attention_mask": "row.attention_mask", "input_ids": "row.ids", "token_type_ids": "row.type_ids"}


@dataclass(frozen=True)
class Texts:
    """How texts become what the files take.

    :param columns: the inputs, and whether the tokenizer makes them; one that it does not make is all zeros.
    :param pad_id: the token that shorter rows are filled up with.
    """

    columns: Mapping[str, bool]
    pad_id: int


def export_card(index: ExportIndex, folder: Path, *, metric: str, texts: Texts, origin: Origin | None = None) -> str:
    """The card of an exported folder.

    :param index: what is in it.
    :param folder: with the tokenizer's files, where it has any.
    :param metric: name of the main metric.
    :param texts: how the files are given texts.
    :param origin: what the network was made from.
    """
    first = index.sizes[0]
    names = ", ".join(f"`{size.subnet}`" for size in index.sizes)
    what = "One size" if len(index.sizes) == 1 else f"{len(index.sizes)} sizes"
    shared = "" if len(index.sizes) == 1 else "; they share one file of weights"
    body = [
        f"# {_name(index, origin)}",
        f"{what} of an elastic encoder that was trained as DynaBERT (Hou et al., NeurIPS 2020): {names}. Written for "
        f"{first.engine} {first.version} in {first.dtype} by the library `dynabert`{shared}. No dynabert is needed to "
        f"run it.",
        "## Measured",
        _measured(index, metric),
        "## Use",
        _use(index, folder, texts),
        "## Provenance",
        bullets(_lines_of(index, origin)),
    ]
    return f"---\n{_header(index, origin).to_yaml()}\n---\n\n" + "\n\n".join(body) + "\n"


def _name(index: ExportIndex, origin: Origin | None) -> str:
    first = index.sizes[0]
    parts = ["dynabert", *([origin.task] if origin else []), *([first.subnet] if len(index.sizes) == 1 else [])]
    return "-".join([*parts, first.engine, first.dtype])


def _header(index: ExportIndex, origin: Origin | None) -> "ModelCardData":
    from huggingface_hub import ModelCardData

    first = index.sizes[0]
    return ModelCardData(
        language=origin.language if origin else None,
        base_model=origin.base_model if origin else None,
        datasets=[origin.dataset] if origin and origin.dataset else None,
        pipeline_tag="text-classification",
        tags=["dynabert", _TAGS.get(first.engine, "pytorch"), first.dtype],
        model_name=_name(index, origin),
    )


def _measured(index: ExportIndex, metric: str) -> str:
    head = (
        "size",
        metric,
        "in PyTorch, fp32",
        "difference, 95 %",
        "as PyTorch says",
        "as the full network",
        "wrong where that is right",
        "graph, MB" if index.shared_bytes else "MB",
        "ms, median",
        "ms, 95 %",
    )
    first = index.sizes[0]
    text = (
        f"{table(head, map(_row, index.sizes))}\n\n"
        f"On {first.parity.n_rows:,} validation rows; the full network has {first.parity.full_metric:.4f}. Largest "
        f"difference of a logit from PyTorch: {max(size.parity.max_difference for size in index.sizes):.2g}. Times: a "
        f"call of {first.timing.batch} x {first.timing.seq} tokens on {machine_line(index.made.machine)}."
    )
    if index.shared_bytes:
        text += f" The weights of all sizes lie in one file of {index.shared_bytes / 1e6:.1f} MB."
    if first.n_fused is not None:
        fused = ", ".join(dict.fromkeys(f"{size.n_fused} of {size.n_layers}" for size in index.sizes))
        text += f" Layers whose attention is one operator: {fused}."
    if first.unquantised:
        text += f" Layers left in fp32: {', '.join(map(str, first.unquantised))}."
    return text


def _row(size: Exported) -> tuple[str, ...]:
    parity, timing = size.parity, size.timing
    agreement = Agreement(is_correlation=parity.negative_flips is None)
    return (
        f"`{size.subnet}`",
        f"{parity.metric:.4f}",
        f"{parity.torch_metric:.4f}",
        f"{parity.difference_low:.4f} to {parity.difference_high:.4f}",
        agreement.text(parity.same_size),
        agreement.text(parity.agreement),
        "" if parity.negative_flips is None else f"{100 * parity.negative_flips:.1f} %",
        f"{size.file_bytes / 1e6:.2f}",
        f"{timing.median_ms:.2f}",
        f"{timing.p95_ms:.2f}",
    )


def _use(index: ExportIndex, folder: Path, texts: Texts) -> str:
    made, first = index.made, index.sizes[0]
    if not (folder / _TOKENIZER).exists():
        return "No tokenizer lies here: `dynabert.exported.open_export` gives a function from token ids to logits."
    engine = engine_of(first.engine, first.dtype)
    example = engine.example(first.file, dtype=first.dtype, n_threads=made.machine.n_threads)
    columns = [
        f'    "{name}": [{_VALUES[name] if own else "[0] * len(row.ids)"} for row in rows],'
        for name, own in texts.columns.items()
    ]
    names = [index.labels[number] for number in sorted(index.labels)]
    code = [
        "import numpy as np",
        *example.imports,
        "from tokenizers import Tokenizer",
        "",
        'folder = "."  # where these files are',
        f'tokenizer = Tokenizer.from_file(f"{{folder}}/{_TOKENIZER}")',
        f"tokenizer.enable_truncation({_longest(index, folder)})",
        f"tokenizer.enable_padding(pad_id={texts.pad_id})",
        'rows = tokenizer.encode_batch(["some text", "another one"])  # a pair of texts: ("one", "two")',
        "columns = {",
        *columns,
        "}",
        "inputs = {name: np.array(column, dtype=np.int64) for name, column in columns.items()}",
        *example.lines,
        *([f"names = {json.dumps(names)}"] if names else []),
        "print([names[best] for best in logits.argmax(axis=1)])" if names else "print(logits[:, 0])",
    ]
    packages = " ".join(map(shlex.quote, (*example.packages, "tokenizers", "numpy")))
    others = "" if len(index.sizes) == 1 else f" Of the other sizes the file is named in `{EXPORT_FILE}`."
    return (
        f"`pip install {packages}`, and, where the files are on the hub, `huggingface_hub.snapshot_download` for "
        f"`folder`:\n\n```python\n" + "\n".join(code) + "\n```\n\n"
        f"With other options the same files may compute something else.{others} With dynabert: `dynabert predict "
        f'FOLDER "some text"`.'
    )


def _longest(index: ExportIndex, folder: Path) -> int:
    """Tokens at which texts are cut off: where training did, as the tokenizer says, or what the model takes."""
    path = folder / "tokenizer_config.json"
    said = read_json(path).get("model_max_length") if path.exists() else None
    return min(index.max_length, int(said) if isinstance(said, int | float) and said < _MOST_TOKENS else _MOST_TOKENS)


def _lines_of(index: ExportIndex, origin: Origin | None) -> list[str]:
    made = index.made
    limit = made.max_metric_drop
    allowed = "rounding alone" if limit is None else f"{limit:g} of the metric, against PyTorch and fp32"
    return [
        *([] if origin is None else origin_lines(origin)),
        f"Weights of the whole network: fingerprint `{made.fingerprint}`",
        f"Written {made.date} on {machine_line(made.machine)}",
        f"Options of {made.machine.engine}: {', '.join(f'{name} {value}' for name, value in made.options.items())}",
        *([_BITS[made.weight_bits]] if made.weight_bits else []),
        f"What the files were allowed to lose: {allowed}",
    ]
