"""What becomes of the attention patterns of a network when it is made small: do its remaining heads take over several?

A *pattern* is what one head of the full network attends to: over some texts, a distribution over the tokens for each
token. The full network is the teacher, since the small sizes are made from it and taught by it. Each Subnet has fewer
heads than that has patterns; of each pattern it is asked how well the closest remaining head reproduces it.

**Similarity** of two heads on one text is 1 - JSD, the Jensen-Shannon divergence in bits of their two distributions for
one query token, averaged over the query tokens: 1 where the heads attend alike, 0 where they never attend to the same
token. (Heads are usually compared by that divergence, as in Clark et al. 2019, "What does BERT look at?") Padding is
neither query nor key; the special tokens are tokens like others. What is averaged over texts are similarities, each
text counting once, and never maps, which have the size of their text.

Any layer is compared with any layer: the patterns of a layer that was dropped have no counterpart by place.

Many heads attend to the same few tokens, [SEP] above all, so that any head is like some other. Four sets of as many
heads as the Subnet has are therefore compared, see `SOURCES`. Source of the question: DynaBERT, its study of attention
maps, which shows maps and gives no number.

    RUN/studies/attention.json      what was found last on the rows of the run
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dynabert.batches import Batch, Batches, encode
from dynabert.data import Rows
from dynabert.elastic import ElasticModel, longest_input
from dynabert.errors import DataError, SettingError, StorageError
from dynabert.files import storage_errors
from dynabert.job import pick_device
from dynabert.loading import load_tokenizer
from dynabert.measure import Progress
from dynabert.predict import columns_of, text_lines
from dynabert.results import load_result, load_teacher
from dynabert.saved import Saved
from dynabert.seeds import permutation
from dynabert.studies.patterns import THRESHOLD, AttentionStudy, Similarities, study_of
from dynabert.studies.study import STUDIES
from dynabert.subnet import Subnet
from dynabert.timing import tell

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RESULT = "attention.json"

TEXTS_AT_ONCE = 8
"""Texts whose maps are held together: of BERT-base at 128 tokens 75 MB for a network, and two networks at a time."""

log = logging.getLogger("dynabert")

Maps = tuple[Tensor, ...]
"""Attention probabilities of each executed layer, (batch, heads, seq, seq): queries, then keys."""


def attention_maps(
    elastic: ElasticModel, inputs: Mapping[str, Tensor], subnets: Iterable[Subnet]
) -> dict[Subnet, Maps]:
    """The attention maps of every head of some Subnets, in eval mode. The model and its views stay as they are.

    :param elastic: the network, with or without a task head.
    :param inputs: what the model's forward takes, (batch, seq) each; on any device.
    :param subnets: which.
    :return: for each Subnet one tensor (batch, heads kept, seq, seq) a layer, on the model's device. Rows sum to 1;
        those of padding tokens mean nothing.
    """
    return {subnet: _maps(_eager_view(elastic, subnet), inputs) for subnet in subnets}


def _eager_view(elastic: ElasticModel, subnet: Subnet) -> "PreTrainedModel":
    """A view of its own: the cached ones keep their attention, and transformers hangs its hooks on this one alone."""
    view = elastic.make_view(elastic.slices(subnet)).eval()
    view.set_attn_implementation("eager")  # the only one that gives its probabilities
    return view


def _maps(view: "PreTrainedModel", inputs: Mapping[str, Tensor]) -> Maps:
    with torch.no_grad():
        moved = {name: tensor.to(view.device) for name, tensor in inputs.items()}
        return tuple(view.base_model(**moved, output_attentions=True).attentions)


def similarities(full_maps: Maps, small_maps: Maps, mask: Tensor) -> Tensor:
    """The similarity of every head of one network with every head of another, text by text: 1 - JSD, see above.

    :param full_maps: one tensor (batch, heads, seq, seq) a layer.
    :param small_maps: likewise, of the same texts.
    :param mask: (batch, seq), not 0 for tokens.
    :return: (batch, heads of the one, heads of the other), in [0, 1]; heads layer after layer.
    """
    full, small = torch.cat(full_maps, 1), torch.cat(small_maps, 1)
    return torch.stack([_similarity(*_tokens(mask[row], full[row], small[row])) for row in range(len(mask))])


def _tokens(mask: Tensor, *heads: Tensor) -> tuple[Tensor, ...]:
    """The queries and keys of maps (heads, seq, seq) that are tokens."""
    kept = mask.nonzero().flatten().to(heads[0].device)
    return tuple(maps[:, kept][:, :, kept] for maps in heads)


def _similarity(full: Tensor, small: Tensor) -> Tensor:
    """Of maps (patterns, tokens, tokens) and (heads, tokens, tokens): (patterns, heads)."""
    own_full, own_small = _entropy(full), _entropy(small)
    # One head at a time: all pairs at once would be as many maps as there are pairs.
    mixed = torch.stack([_entropy((full + head) / 2) for head in small], 1)
    return (1 - (mixed - (own_full[:, None] + own_small) / 2)).clamp(0, 1)


def _entropy(maps: Tensor) -> Tensor:
    """In bits, of each query's distribution, averaged over the queries: (..., tokens, tokens) to (...)."""
    return -(maps * maps.clamp_min(torch.finfo(maps.dtype).tiny).log2()).sum(-1).mean(-1)


def attention_study(
    teacher: ElasticModel,
    elastic: ElasticModel,
    batches: Iterable[Batch],
    *,
    subnets: Sequence[Subnet] | None = None,
    threshold: float = THRESHOLD,
    progress: Progress | None = None,
) -> AttentionStudy:
    """How well the heads of each Subnet reproduce the patterns of the teacher.

    One batch after the other: of earlier ones only the similarities are kept, a number for each text, pattern and head.

    :param teacher: the network that the elastic one was made from, its heads in the same order (rewired alike): the
        patterns are those of its full size, and its own Subnets are the same cuts without training.
    :param elastic: the trained network.
    :param batches: the texts; labels are not looked at. Batches of `TEXTS_AT_ONCE` rows keep the memory small.
    :param subnets: which; by default the grid of `elastic`.
    :param threshold: the similarity from which on a pattern counts as reproduced, in (0, 1).
    :param progress: told how many batches are done.
    :raises SettingError: no Subnets, networks of different shape, or a threshold outside (0, 1).
    :raises DataError: no texts.
    """
    chosen = tuple(elastic.grid if subnets is None else subnets)
    _check(teacher, elastic, chosen, threshold)
    whole = _eager_view(teacher, Subnet())
    networks = {"distilled": elastic, "cut": teacher}
    views = {(name, subnet): _eager_view(net, subnet) for name, net in networks.items() for subnet in chosen}
    of_patterns: list[Tensor] = []
    of_heads: dict[tuple[str, Subnet], list[Tensor]] = {key: [] for key in views}
    rows = tuple(batches)
    for done, batch in enumerate(rows):
        tell(progress, "attention", done, len(rows))
        mask, patterns = batch.inputs["attention_mask"], _maps(whole, batch.inputs)
        of_patterns.append(similarities(patterns, patterns, mask).cpu())
        for key, view in views.items():
            of_heads[key].append(similarities(patterns, _maps(view, batch.inputs), mask).cpu())
    if not rows:
        raise DataError("there are no texts to study; give at least one")
    tell(progress, "attention", len(rows), len(rows))
    joined = {key: torch.cat(parts).numpy() for key, parts in of_heads.items()}
    measured = [
        Similarities(subnet, elastic.slices(subnet), joined["distilled", subnet], joined["cut", subnet])
        for subnet in chosen
    ]
    return study_of(torch.cat(of_patterns).numpy(), measured, n_heads=elastic.shape.n_heads, threshold=threshold)


def _check(teacher: ElasticModel, elastic: ElasticModel, chosen: tuple[Subnet, ...], threshold: float) -> None:
    if not chosen:
        raise SettingError("an attention study needs at least one Subnet; the grid of the run is the default")
    if teacher.shape != elastic.shape:
        raise SettingError(f"a teacher of {teacher.shape} does not fit {elastic.shape}; give the one it was made from")
    if not 0 < threshold < 1:
        raise SettingError(f"threshold {threshold} is outside (0, 1); {THRESHOLD} is usual")


def attention_of_run(
    out: str | Path,
    *,
    texts: Iterable[str] | None = None,
    n_rows: int = 200,
    threshold: float = THRESHOLD,
    progress: Progress | None = None,
    device: str | None = None,
) -> AttentionStudy:
    """The attention study of a finished run over its grid.

    :param out: the run folder.
    :param texts: lines of one text, or of two separated by a tab; by default validation rows of the run.
    :param n_rows: how many of those, drawn at random, the same ones each time; all where there are fewer.
    :param threshold: see `attention_study`.
    :param progress: told how far it is.
    :param device: where to compute; by default the GPU if there is one.
    :return: of validation rows also written to ``studies/attention.json``; where that cannot be, a warning says so.
    :raises SettingError: no rows asked for, or a threshold outside (0, 1).
    :raises DataError: texts that cannot be used, or rows that are not those of the run any more.
    :raises ModelFileError: not a finished run.
    """
    if n_rows < 1:
        raise SettingError(f"{n_rows} rows are too few; 200 are usual")
    device, elastic = pick_device(device), load_result(out)
    tokenizer = load_tokenizer(Path(out) / "elastic")
    if texts is None:
        saved = Saved.of(out)
        _, roles = saved.roles()
        n_found, limit = len(roles.validation), saved.plan.batching.max_length
        rows = roles.validation.take(permutation(n_found, "attention")[:n_rows].tolist())
    else:
        rows, limit = rows_of_texts(texts), min(longest_input(elastic.model), tokenizer.model_max_length)
    encoded = encode(tokenizer, rows, limit)
    batches = Batches(encoded, batch_size=TEXTS_AT_ONCE, seed=0, pad_id=tokenizer.pad_token_id, shuffle=False)
    teacher = load_teacher(out, elastic, rewired=True)
    teacher.to(device)
    elastic.to(device)
    study = attention_study(teacher, elastic, batches, threshold=threshold, progress=progress)
    if texts is None:
        _keep(study, Path(out) / STUDIES)
    return study


def _keep(study: AttentionStudy, folder: Path) -> None:
    """Write what a report can show; a run that cannot be written to can be studied all the same."""
    try:
        with storage_errors(folder):
            folder.mkdir(exist_ok=True)
        study.to_json(folder / RESULT)
    except StorageError as error:
        log.warning("the study is not kept for the report: %s", error)


def rows_of_texts(texts: Iterable[str]) -> Rows:
    """Lines of one text, or of two separated by a tab, as rows without labels; empty lines are left out.

    :raises DataError: none that is not empty, or lines that cannot be used.
    """
    lines = list(text_lines(texts))
    if not lines:
        raise DataError("there are no texts to study; give at least one that is not empty")
    return Rows(tuple(columns_of(lines)), None, list(range(len(lines))))
