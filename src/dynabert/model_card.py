"""Model cards: what a folder holds, what was measured of it, where it comes from, how to load it. Plain text.

The header is written and read by huggingface_hub, in the form in which the hub shows measured values (a model index).
Beside each value stands the size that it belongs to, so the card of a small model can take over its own.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynabert.card_parts import HERE, Origin, bullets, header_of, linked, machine_line, origin_lines, signed, table
from dynabert.description import Description
from dynabert.families import Family
from dynabert.measurement import Agreement, Measurement
from dynabert.modeling import LOADERS, is_stock
from dynabert.subnet import EncoderShape, LayerSlice, Subnet, encoder_flops
from dynabert.sweep import Sweep

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

_AUTO = "AutoModelForSequenceClassification"
_HUB_METRICS = {"matthews": "matthews_correlation", "pearson": "pearsonr", "spearman": "spearmanr"}
_SEQ = 128
_METHOD = "It was trained as DynaBERT (Hou et al., NeurIPS 2020) with the library `dynabert`"


@dataclass(frozen=True)
class Small:
    """A model that was cut out of an elastic one.

    :param subnet: which size.
    :param slices: what it keeps.
    :param shape: the full encoder.
    :param n_params: all its parameters.
    :param auto_class: the Auto class of transformers that loads it.
    :param trained: whether the size is one of the trained grid.
    :param pad_heads: whether the heads that are cut are there as zeros.
    :param source: hub name of the elastic model; None where it came from a folder.
    """

    subnet: Subnet
    slices: tuple[LayerSlice, ...]
    shape: EncoderShape
    n_params: int
    auto_class: str = _AUTO
    trained: bool = True
    pad_heads: bool = False
    source: str | None = None

    @property
    def is_stock(self) -> bool:
        """Whether stock classes of transformers hold it."""
        return self.pad_heads or is_stock(self.shape, self.slices)


# What is said of an elastic model.


def elastic_card(
    described: Description,
    family: Family,
    *,
    auto_class: str = _AUTO,
    sweep: Sweep | None = None,
    deployed: Sequence[Sweep] = (),
    origin: Origin | None = None,
    split: str = "validation",
) -> str:
    """The card of an elastic model.

    :param described: its sizes.
    :param family: its architecture.
    :param auto_class: the Auto class of transformers that loads its full size.
    :param sweep: what was measured of it.
    :param deployed: what was measured of its sizes in the forms in which engines run them.
    :param origin: what it was made from.
    :param split: of the data set, that it was measured on.
    """
    data = _elastic_data(family, sweep, origin, split)
    shape = described.shape
    body = [
        f"# {data.model_name}",
        f"One `{family.model_type}` encoder that runs at {len(described.grid)} sizes: widths "
        f"{_times(described.grid.widths)} (the share of its {shape.n_heads} attention heads and {shape.n_neurons:,} "
        f"neurons in each layer) with depths {_times(described.grid.depths)} (the share of its {shape.n_layers} "
        f"layers). A size is chosen when it is loaded and needs no further training. {_METHOD}.",
        "## Sizes",
        _sizes(described, sweep),
        *(["## As deployed", *map(_deployed, deployed)] if deployed else []),
        "## Use",
        _use_elastic(described, auto_class),
        *_provenance(sweep, origin),
        "## Limits",
        bullets(_limits(sweep, origin, ["Sizes outside this grid can be cut out too. They were not trained."])),
    ]
    return signed(data, body)


def _elastic_data(family: Family, sweep: Sweep | None, origin: Origin | None, split: str) -> "ModelCardData":
    from huggingface_hub import ModelCardData

    name = f"dynabert-{family.model_type}" + (f"-{origin.task}" if origin else "")
    results = [] if sweep is None else [value for row in sweep.rows for value in _results(row, sweep, origin, split)]
    return ModelCardData(
        language=origin.language if origin else None,
        library_name="transformers",
        base_model=origin.base_model if origin else None,
        datasets=[origin.dataset] if origin and origin.dataset else None,
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
        pipeline_tag="text-classification" if sweep else None,
        tags=["dynabert", "elastic", family.model_type],
        model_name=name,
        eval_results=results or None,
    )


def _results(row: Measurement, sweep: Sweep, origin: Origin | None, split: str) -> "list[EvalResult]":
    from huggingface_hub import EvalResult

    context = sweep.context
    on_hub = origin.dataset if origin else None
    interval = {"low_95": row.quality.metric_low, "high_95": row.quality.metric_high}
    return [
        EvalResult(
            task_type="text-classification",
            dataset_type=on_hub or context.task,
            dataset_name=context.task,
            dataset_config=context.task if on_hub else None,
            dataset_split=split,
            metric_type=_HUB_METRICS.get(name, name),
            metric_name=f"{name} of {row.subnet}",
            metric_value=round(value, 6),
            metric_args={"subnet": row.subnet, **(interval if name == context.metric else {})},
        )
        for name, value in row.quality.metrics.items()
    ]


def _sizes(described: Description, sweep: Sweep | None) -> str:
    if sweep is None:
        lines = [
            (subnet.name, f"{len(slices)} of {described.shape.n_layers}", LOADERS[is_stock(described.shape, slices)])
            for subnet in described.grid
            for slices in (described.slices(subnet),)
        ]
        return table(("size", "layers", "once cut out, loads with"), lines) + "\n\nNothing was measured."
    context, latency = sweep.context, sweep.context.latency
    agreement = context.agreement
    head = ["size", "layers", context.metric, "95 %", agreement.name, "M parameters", "GFLOPs"]
    head += (["ms"] if latency else []) + ["once cut out, loads with"]
    text = (
        f"{table(head, [_size(row, agreement, timed=latency is not None) for row in sweep.rows])}\n\n"
        f"On {context.n_rows:,} validation rows of {context.task}, which training never saw; 95 % bootstrap intervals "
        f"over rows. {agreement.name.capitalize()}: with the teacher, whose {context.metric} is "
        f"{context.reference:.4f}. FLOPs: of the encoder, at {context.seq_len} tokens."
    )
    if latency is not None:
        text += (
            f" Milliseconds: median of {latency.repeats} calls of {latency.batch[0]} x {latency.seq[0]} tokens, "
            f"{latency.engine} {latency.dtype}, on {machine_line(context.machine)}."
        )
    return text


def _size(row: Measurement, agreement: Agreement, *, timed: bool) -> tuple[str, ...]:
    quality, cost = row.quality, row.cost
    return (
        f"`{row.subnet}`",
        f"{row.n_layers:.3g} of {row.of_layers}",
        f"{row.metric:.4f}",
        f"{quality.metric_low:.3f} to {quality.metric_high:.3f}",
        agreement.text(quality.agreement),
        f"{cost.n_params / 1e6:.2f}",
        f"{cost.flops / 1e9:.2f}",
        *((("-" if cost.latency_ms is None else f"{cost.latency_ms:.2f}"),) if timed else ()),
        row.loads_with,
    )


def _deployed(sweep: Sweep) -> str:
    context, latency = sweep.context, sweep.context.latency
    assert latency is not None, "that of a deployed form is timed"
    shapes = [f"ms, {batch} x {seq}" for batch, seq in latency.shapes]
    lines = [
        (
            f"`{row.subnet}`",
            f"{row.metric:.4f}",
            context.agreement.text(row.quality.agreement),
            *("-" if size is None else f"{size / 1e6:.1f}" for size in (row.cost.file_bytes, row.cost.peak_bytes)),
            *(f"{timing.median_ms:.2f}" for timing in row.cost.timings),
        )
        for row in sweep.rows
    ]
    head = ["size", context.metric, context.agreement.name, "file, MB", "memory, MB", *shapes]
    return (
        f"In {latency.dtype}, run by {context.machine.engine} on {machine_line(context.machine)}; metric and "
        f"{context.agreement.name} are those of the written files, on the same {context.n_rows:,} rows. Memory: what "
        f"running one at the largest shape takes on top of the engine's own. Milliseconds: medians of "
        f"{latency.repeats} calls of so many sequences x tokens.\n\n"
        f"{table(head, lines)}"
    )


def _use_elastic(described: Description, auto_class: str) -> str:
    smaller = (subnet for subnet in described.grid if subnet.width != 1 and subnet.depth != 1)
    chosen = next(smaller, described.grid.smallest)
    return f"""```python
import dynabert

tokenizer = dynabert.load_tokenizer("{HERE}")
model = dynabert.load("{HERE}", subnet="{chosen.name}")  # reads that size and nothing else

elastic = dynabert.ElasticModel.from_pretrained("{HERE}")  # all sizes around one copy of the weights
model = elastic.at(dynabert.Subnet.parse("{chosen.name}"))
```

```console
$ dynabert extract {HERE} --subnet {chosen.name} --out small/  # a folder of its own
```

Without dynabert, `transformers.{auto_class}.from_pretrained("{HERE}")` loads the full size. A folder that was cut out \
loads with stock transformers where all heads are kept. With fewer heads it loads with `dynabert.load(folder)`, with \
`{auto_class}.from_pretrained(folder)` after `import dynabert`, and with `trust_remote_code=True` where dynabert is \
not installed."""


# What is said of a small model.


def small_card(small: Small, parent: str, *, sweep: Sweep | None = None, origin: Origin | None = None) -> str:
    """The card of a small model.

    :param small: what it is.
    :param parent: text of the card of the elastic model that it was cut out of; empty where there is none.
    :param sweep: what was measured of the elastic model; without it, the values of the parent's card are taken over.
    :param origin: what the elastic model was made from.
    """
    data = _small_data(small, parent)
    slices, shape = small.slices, small.shape
    body = [
        f"# {data.model_name}",
        f"One size, `{small.subnet.name}`, of an elastic encoder: {len(slices)} of {shape.n_layers} layers, "
        f"{_span(part.n_heads for part in slices)} of {shape.n_heads} attention heads and "
        f"{_span(part.n_neurons for part in slices)} of {shape.n_neurons:,} neurons in each; "
        f"{small.n_params / 1e6:.2f} M parameters, {encoder_flops(shape, slices, _SEQ) / 1e9:.2f} GFLOPs at {_SEQ} "
        f"tokens. {_METHOD}, all sizes together; then this one was cut out.",
        "## Measured",
        _measured(data.eval_results or []),
        "## Use",
        _use_small(small),
        *_provenance(sweep, origin, source=small.source),
        "## Limits",
        bullets(_limits(sweep, origin, _limits_of(small))),
    ]
    return signed(data, body)


def _small_data(small: Small, parent: str) -> "ModelCardData":
    from huggingface_hub import ModelCardData

    known = header_of(parent) or ModelCardData()
    own = [result for result in known.eval_results or [] if _is_of(result, small.subnet)]
    for result in own:
        result.metric_name = str(result.metric_name).removesuffix(f" of {small.subnet.name}")
    tags = [tag for tag in _texts(known.tags) or ["dynabert"] if tag not in ("elastic", "custom_code")]
    return ModelCardData(
        language=_texts(known.language),
        library_name="transformers",
        license=_text(known.license),
        base_model=small.source or _texts(known.base_model),
        datasets=_texts(known.datasets),
        metrics=list(dict.fromkeys(result.metric_type for result in own)) or None,
        pipeline_tag=_text(known.pipeline_tag),
        tags=tags + ([] if small.is_stock else ["custom_code"]),
        model_name=f"{_text(known.get('model_name')) or 'dynabert'}-{small.subnet.name}",
        eval_results=own or None,
    )


def _is_of(result: "EvalResult", subnet: Subnet) -> bool:
    """Whether a value of somebody else's header is a number, and one of this size."""
    args = result.metric_args if isinstance(result.metric_args, dict) else {}
    texts = (result.metric_type, result.dataset_name, result.dataset_type)
    return args.get("subnet") == subnet.name and _is_number(result.metric_value) and all(map(_text, texts))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _texts(value: object) -> list[str] | None:
    """One text or several, of a header that may say anything."""
    texts = [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
    return texts or None


def _measured(results: "list[EvalResult]") -> str:
    if not results:
        return "This size was not measured."
    lines = []
    for result in results:
        low, high = ((result.metric_args or {}).get(name) for name in ("low_95", "high_95"))
        interval = f"{low:.3f} to {high:.3f}" if _is_number(low) and _is_number(high) else ""
        lines.append((str(result.metric_name), f"{result.metric_value:.4f}", interval, result.dataset_name))
    return table(("metric", "value", "95 %", "validation rows of"), lines)


def _use_small(small: Small) -> str:
    if small.is_stock:
        return f"""A stock model of transformers:

```python
from transformers import AutoTokenizer, {small.auto_class}

tokenizer = AutoTokenizer.from_pretrained("{HERE}")
model = {small.auto_class}.from_pretrained("{HERE}")
```"""
    return f"""It has fewer heads than a stock class can hold, and loads in three ways:

```python
import dynabert  # 1: nothing that lies in the folder is executed

model = dynabert.load("{HERE}", head=None)
tokenizer = dynabert.load_tokenizer("{HERE}")
```

```python
import dynabert  # 2: its classes are then known to transformers
from transformers import AutoTokenizer, {small.auto_class}

model = {small.auto_class}.from_pretrained("{HERE}")
tokenizer = AutoTokenizer.from_pretrained("{HERE}")
```

```python
from transformers import AutoTokenizer, {small.auto_class}  # 3: without dynabert; runs the code of the folder

model = {small.auto_class}.from_pretrained("{HERE}", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("{HERE}", trust_remote_code=True)
```"""


def _limits_of(small: Small) -> list[str]:
    limits = [] if small.trained else ["This size was not trained; expect less of it than of those that were."]
    if small.pad_heads:
        limits += ["The heads that are cut are there as zeros: attention costs as much as with all heads."]
    return limits


# What both say.


def _provenance(sweep: Sweep | None, origin: Origin | None, *, source: str | None = None) -> list[str]:
    lines = [f"Cut out of {linked(source)}, whose card says how it was trained"] if source else []
    lines += [] if origin is None else origin_lines(origin)
    if sweep is not None:
        context = sweep.context
        lines += [
            f"Teacher: {context.metric} {context.reference:.4f} on the same {context.n_rows:,} rows",
            f"Measured {context.date} in {context.precision} on {machine_line(context.machine)}",
        ]
    return ["## Provenance", bullets(lines)] if lines else []


def _limits(sweep: Sweep | None, origin: Origin | None, own: list[str]) -> list[str]:
    limits = list(own)
    if origin is not None:
        limits.append(f"Trained and measured on one task ({origin.task}) with one seed.")
        limits.append(f"Texts were cut off at {origin.max_length} tokens.")
    if sweep is not None and sweep.context.latency is not None:
        limits.append("Times hold for the machine and the versions that they were measured with.")
    return [*limits, "What the base model has learned, its biases included, is still in it."]


def _times(shares: tuple[float, ...]) -> str:
    return ", ".join(f"{share:g}" for share in shares)


def _span(counts: Iterable[int]) -> str:
    found = sorted(set(counts))
    return f"{found[0]:,}" if len(found) == 1 else f"{found[0]:,} to {found[-1]:,}"
