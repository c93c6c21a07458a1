"""What an attention study found: plain values, a table, and the intervals that a bootstrap over texts gives. No torch.

What was measured is a similarity for each text, pattern and head (`dynabert.studies.attention` says of what kind).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from math import comb
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dynabert.errors import NonFiniteError
from dynabert.files import StrPath, write_json
from dynabert.statistics import interval_of, resampled_shares
from dynabert.subnet import LayerSlice, Subnet

if TYPE_CHECKING:
    from rich.table import Table

FORMAT_VERSION = 2

THRESHOLD = 0.85
"""The similarity from which on a pattern counts as reproduced, by default: a high one, since many heads are alike.
`AttentionStudy.pairs_alike` says how many are so alike; how much is covered depends on it, so see the mean as well.
"""

SOURCES = ("distilled", "cut", "unchanged", "random")
"""The sets of as many heads as a Subnet has, of which each is asked how well it reproduces the patterns:

- ``distilled``: the heads of the trained Subnet.
- ``cut``: those of the teacher cut to the same Subnet, without training.
- ``unchanged``: the same heads of the whole teacher, as if they went on attending as they did. Each reproduces its own
  pattern exactly. Where the trained ones do better, they have taken over patterns of others.
- ``random``: heads of the whole teacher drawn at random, the pattern's own left out; the mean over all draws. So much
  is reproduced because heads are alike anyway.
"""

DIFFERENCES = {f"distilled - {other}": ("distilled", other) for other in SOURCES[1:]}
"""What else is told of each Subnet: differences, resampled with the same texts."""

_N_RESAMPLES = 1000
_AT_ONCE = 50  # resamples whose similarities are in memory together


class Estimate(NamedTuple):
    """A value, and the 95 % bootstrap interval over texts, of the one run; None where there is but one text.

    The closest head is looked for anew in each resample, so an interval may lie a little above its value.
    """

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Score:
    """How well a set of heads reproduces the patterns of the full network, or a difference of two of these.

    :param covered: share of the patterns whose closest head is at least as similar as the threshold says.
    :param similarity: similarity with the closest head, mean over all patterns. It needs no threshold.
    :param removed: likewise over the patterns of the heads that the Subnet does not have; None where it has all.
    """

    covered: Estimate
    similarity: Estimate
    removed: Estimate | None


@dataclass(frozen=True)
class Matching:
    """Which head of the trained Subnet reproduces which pattern; heads and patterns layer after layer.

    :param best: for each pattern the similarity of the closest head, mean over texts.
    :param nearest: for each pattern the closest head: its layer and number in the full network, from 0.
    :param covers: for each head of the Subnet how many patterns it reproduces, by the threshold; some share a pattern.
    """

    best: tuple[float, ...]
    nearest: tuple[tuple[int, int], ...]
    covers: tuple[int, ...]


@dataclass(frozen=True)
class SubnetCoverage:
    """What was found of one Subnet.

    :param subnet: its name.
    :param n_layers: layers that it executes.
    :param n_heads: heads of all its layers together.
    :param scores: by the names in `SOURCES` and `DIFFERENCES`.
    :param matching: of the trained heads.
    """

    subnet: str
    n_layers: int
    n_heads: int
    scores: dict[str, Score]
    matching: Matching


@dataclass(frozen=True)
class AttentionStudy:
    """How well the heads of each Subnet reproduce the attention patterns of the full network.

    :param rows: one for each Subnet.
    :param n_patterns: heads of the full network, all layers together.
    :param n_heads: heads of each of its layers; 0 where an old file does not say.
    :param n_texts: texts that it was measured on.
    :param threshold: see `Score.covered`.
    :param pair_similarity: of two different heads of the full network, mean over all pairs.
    :param pairs_alike: share of those pairs that are at least as similar as the threshold says.
    """

    rows: tuple[SubnetCoverage, ...]
    n_patterns: int
    n_heads: int
    n_texts: int
    threshold: float
    pair_similarity: float
    pairs_alike: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values; estimates are lists of value, low and high end."""
        return {"format_version": FORMAT_VERSION, **asdict(self)}

    def to_json(self, path: StrPath) -> None:
        """Write to a JSON file, atomically.

        :raises StorageError: disk full, no permission, or an I/O error.
        """
        write_json(path, self.to_dict())

    def to_table(self) -> "Table":
        """The rows as a table of rich, in %."""
        from rich import box
        from rich.table import Table

        alike = f"{self.pairs_alike:.0%} of all pairs of them are so alike, {self.pair_similarity:.0%} is their mean"
        table = Table(
            title=f"{self.n_patterns} attention patterns of the teacher on {_count(self.n_texts, 'text')}, in %",
            caption=f"covered: the closest head has a similarity (1 - JSD) of {self.threshold:g} or more; {alike}; "
            "of a head, most: patterns that one remaining head covers, in the mean and at most",
            box=box.SIMPLE,
        )
        table.add_column("Subnet")
        for header in (
            "heads",
            "share",
            "covered",
            "95 %",
            "cut",
            "unchanged",
            "random",
            "similarity",
            "of a head",
            "most",
        ):
            table.add_column(header, justify="right", no_wrap=True)
        for row in self.rows:
            table.add_row(*self._cells(row))
        return table

    def table(self) -> str:
        """The rows as lines of plain text."""
        from dynabert.sweep import plain_text

        return plain_text(self.to_table())

    def _cells(self, row: SubnetCoverage) -> tuple[str, ...]:
        covered = {name: row.scores[name].covered.value for name in SOURCES}
        _, low, high = row.scores["distilled"].covered
        return (
            row.subnet,
            str(row.n_heads),
            f"{100 * row.n_heads / self.n_patterns:.1f}",
            f"{100 * covered['distilled']:.1f}",
            "-" if low is None or high is None else f"{100 * low:.1f} to {100 * high:.1f}",
            *(f"{100 * covered[name]:.1f}" for name in SOURCES[1:]),
            f"{100 * row.scores['distilled'].similarity.value:.1f}",
            f"{np.mean(row.matching.covers):.2f}",
            f"{max(row.matching.covers)}",
        )


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


@dataclass(frozen=True, eq=False)
class Similarities:
    """What was measured of one Subnet.

    :param slices: its layers and how many heads each keeps, the leading ones.
    :param distilled: similarity of each pattern with each trained head, (texts, patterns, heads).
    :param cut: likewise with the heads of the untrained cut.
    """

    subnet: Subnet
    slices: tuple[LayerSlice, ...]
    distilled: np.ndarray
    cut: np.ndarray

    @property
    def heads(self) -> list[tuple[int, int]]:
        """Layer and number of each head that it keeps."""
        return [(part.layer, head) for part in self.slices for head in range(part.n_heads)]


def study_of(full: np.ndarray, measured: Sequence[Similarities], *, n_heads: int, threshold: float) -> AttentionStudy:
    """Turn similarities into scores with intervals. All Subnets and sources are resampled with the same texts.

    :param full: similarity of each pattern with each, (texts, patterns, patterns).
    :param measured: of each Subnet.
    :param n_heads: heads of each layer of the full network.
    :param threshold: see `Score.covered`.
    :raises NonFiniteError: NaN among the similarities: a network is broken.
    """
    if not all(np.isfinite(part).all() for part in (full, *(part.distilled for part in measured))):
        raise NonFiniteError("the attention of this network is NaN or infinite; check how it was trained")
    n_texts, n_patterns, _ = full.shape
    scorers = [_Scorer(part, n_heads, n_patterns, threshold) for part in measured]
    as_it_is = np.full((1, n_texts), 1 / n_texts)
    values = [next(_scored([scorer], full, [as_it_is]))[0][0] for scorer in scorers]
    resampled: list[np.ndarray] | None = None
    if n_texts > 1:
        chunks = _scored(scorers, full, resampled_shares(n_texts, _N_RESAMPLES, at_once=_AT_ONCE))
        resampled = [np.concatenate(parts) for parts in zip(*chunks, strict=True)]
    different = full.mean(0)[~np.eye(n_patterns, dtype=bool)]
    return AttentionStudy(
        tuple(
            _row(scorer, value, None if resampled is None else resampled[place])
            for place, (scorer, value) in enumerate(zip(scorers, values, strict=True))
        ),
        n_patterns=n_patterns,
        n_heads=n_heads,
        n_texts=n_texts,
        threshold=threshold,
        pair_similarity=float(different.mean()),
        pairs_alike=float((different >= threshold).mean()),
    )


def _scored(scorers: "Sequence[_Scorer]", full: np.ndarray, chunks: Iterable[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """For each chunk of resamples, by the shares (resamples, texts) of the texts: the scores of each Subnet."""
    for shares in chunks:
        means = _mean(shares, full)
        others = np.where(np.eye(means.shape[-1], dtype=bool), -1, means)  # below any similarity
        ranked = -np.sort(-others, axis=-1)[..., :-1]
        yield [scorer(shares, means, ranked) for scorer in scorers]


def _mean(shares: np.ndarray, similarity: np.ndarray) -> np.ndarray:
    """Over the texts: (resamples, patterns, heads)."""
    flat = shares.astype(np.float32) @ similarity.reshape(len(similarity), -1)
    return flat.reshape(len(shares), *similarity.shape[1:])


class _Scorer:
    """Scores of one Subnet: covered, similarity and removed of each source."""

    def __init__(self, part: Similarities, n_heads: int, n_patterns: int, threshold: float) -> None:
        self.part, self.threshold = part, threshold
        self.kept = [layer * n_heads + head for layer, head in part.heads]
        self.removed = np.setdiff1d(np.arange(n_patterns), self.kept)
        # Of n heads drawn from all others, the chance that the one ranked r by similarity is the first that is drawn.
        n_others = n_patterns - 1
        n = min(len(self.kept), n_others)
        self.first = np.array([comb(n_others - 1 - r, n - 1) / comb(n_others, n) for r in range(n_others)])

    def __call__(self, shares: np.ndarray, full: np.ndarray, ranked: np.ndarray) -> np.ndarray:
        """The scores, (resamples, sources, 3); NaN where nothing was removed.

        :param shares: of the texts, (resamples, texts).
        :param full: similarity of the patterns with each other, (resamples, patterns, patterns).
        :param ranked: of each pattern with the others, descending, (resamples, patterns, patterns - 1).
        """
        means = (_mean(shares, self.part.distilled), _mean(shares, self.part.cut), full[..., self.kept])
        best = [similarity.max(-1) for similarity in means]
        scores = [self._summed(similarity, similarity >= self.threshold) for similarity in best]
        n_alike = (ranked >= self.threshold).sum(-1)
        reached = np.concatenate([[0.0], self.first.cumsum()])[n_alike]
        return np.stack([*scores, self._summed(ranked @ self.first, reached)], axis=1)

    def _summed(self, similarity: np.ndarray, covered: np.ndarray) -> np.ndarray:
        """Of each pattern, (resamples, patterns), to the three scores, (resamples, 3)."""
        gone = similarity[:, self.removed]
        removed = gone.mean(-1) if gone.size else np.full(len(gone), np.nan)
        return np.stack([covered.mean(-1), similarity.mean(-1), removed], axis=1)


def _row(scorer: _Scorer, value: np.ndarray, resampled: np.ndarray | None) -> SubnetCoverage:
    """From the scores (sources, 3), and those of the resamples (resamples, sources, 3)."""
    part = scorer.part
    mean = part.distilled.mean(0)
    place = {name: number for number, name in enumerate(SOURCES)}
    scores = {name: _score(value[i], None if resampled is None else resampled[:, i]) for name, i in place.items()}
    for name, (a, b) in DIFFERENCES.items():
        i, j = place[a], place[b]
        gains = None if resampled is None else resampled[:, i] - resampled[:, j]
        scores[name] = _score(value[i] - value[j], gains)
    matching = Matching(
        best=tuple(mean.max(-1).tolist()),
        nearest=tuple(part.heads[head] for head in mean.argmax(-1)),
        covers=tuple((mean >= scorer.threshold).sum(0).tolist()),
    )
    return SubnetCoverage(part.subnet.name, len(part.slices), len(part.heads), scores, matching)


def _score(values: np.ndarray, resampled: np.ndarray | None) -> Score:
    estimates = [
        Estimate(float(value), *((None, None) if resampled is None else interval_of(resampled[:, place])))
        for place, value in enumerate(values)
    ]
    covered, similarity, removed = estimates
    return Score(covered, similarity, None if np.isnan(removed.value) else removed)
