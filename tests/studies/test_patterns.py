from itertools import combinations

import numpy as np
import pytest

from dynabert.errors import NonFiniteError
from dynabert.studies.patterns import DIFFERENCES, SOURCES, Similarities, study_of
from dynabert.subnet import LayerSlice, Subnet

N_TEXTS, N_HEADS = 30, 3  # of each of two layers
SLICES = (LayerSlice(0, 2, 16), LayerSlice(1, 1, 16))
KEPT = [0, 1, 3]  # the patterns of the heads that these keep


def drawn(seed: int, n_heads: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 1, (N_TEXTS, 6, n_heads)).astype(np.float32)


def full() -> np.ndarray:
    similarity = drawn(0, 6)
    similarity = (similarity + similarity.transpose(0, 2, 1)) / 2
    similarity[:, range(6), range(6)] = 1
    return similarity


def measured(seed: int = 1) -> Similarities:
    return Similarities(Subnet.of_layers(*SLICES), SLICES, drawn(seed, 3), drawn(seed + 1, 3))


def expected(best: np.ndarray, threshold: float) -> tuple[float, float, float]:
    removed = [pattern for pattern in range(6) if pattern not in KEPT]
    return float((best >= threshold).mean()), float(best.mean()), float(best[removed].mean())


def test_scores_equal_a_plain_reckoning() -> None:
    patterns, part, threshold = full(), measured(), 0.53
    (row,) = study_of(patterns, [part], n_heads=N_HEADS, threshold=threshold).rows
    means = {"distilled": part.distilled.mean(0), "cut": part.cut.mean(0), "unchanged": patterns.mean(0)[:, KEPT]}
    plain = {source: expected(mean.max(1), threshold) for source, mean in means.items()}
    draws = []  # every three of the five other heads, for each pattern
    for pattern in range(6):
        others = np.delete(patterns.mean(0)[pattern], pattern)
        draws.append([max(others[list(chosen)]) for chosen in combinations(range(5), 3)])
    plain["random"] = tuple(np.mean([expected(best, threshold) for best in np.array(draws).T], axis=0))
    for source in SOURCES:
        score = row.scores[source]
        assert score.removed is not None
        found = (score.covered.value, score.similarity.value, score.removed.value)
        assert found == pytest.approx(plain[source], abs=1e-6), source
    for name, (a, b) in DIFFERENCES.items():
        assert row.scores[name].similarity.value == pytest.approx(plain[a][1] - plain[b][1], abs=1e-6)
    assert 0 < plain["distilled"][0] < 1 and 0 < plain["random"][0] < 1, "otherwise the threshold shows nothing"


def test_matching_says_which_head_has_which_pattern() -> None:
    part = measured()
    (row,) = study_of(full(), [part], n_heads=N_HEADS, threshold=0.5).rows
    mean = part.distilled.mean(0)
    heads = [(0, 0), (0, 1), (1, 0)]
    assert row.matching.nearest == tuple(heads[head] for head in mean.argmax(1))
    assert row.matching.best == pytest.approx(tuple(mean.max(1)))
    assert row.matching.covers == tuple((mean >= 0.5).sum(0)) and len(set(row.matching.covers)) > 1


def test_intervals_are_those_of_resampled_texts() -> None:
    patterns, part = full(), measured()
    (row,) = study_of(patterns, [part], n_heads=N_HEADS, threshold=0.53).rows
    random = np.random.default_rng(7)
    values = []
    for _ in range(2000):
        texts = random.integers(0, N_TEXTS, N_TEXTS)
        ours, theirs = (side[texts].mean(0).max(1).mean() for side in (part.distilled, part.cut))
        values.append((ours, ours - theirs))
    for place, name in enumerate(("distilled", "distilled - cut")):
        low, high = np.quantile([value[place] for value in values], [0.025, 0.975])
        estimate = row.scores[name].similarity
        assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=0.004)


def test_one_text_has_no_interval() -> None:
    part = measured()
    one = Similarities(part.subnet, SLICES, part.distilled[:1], part.cut[:1])
    (row,) = study_of(full()[:1], [one], n_heads=N_HEADS, threshold=0.5).rows
    assert row.scores["distilled"].similarity[1:] == (None, None)


def test_table_and_dictionary_hold_every_subnet() -> None:
    study = study_of(full(), [measured(1), measured(3)], n_heads=N_HEADS, threshold=0.53)
    table = study.table()
    assert table.count("l0h2n16_l1h1n16") == 2 and "50.0" in table and "0.53" in table
    told = study.to_dict()
    assert (
        len(told["rows"]) == 2
        and told["rows"][0]["scores"]["cut"]["covered"][0] == study.rows[0].scores["cut"].covered.value
    )
    different = full().mean(0)[~np.eye(6, dtype=bool)]
    assert study.pair_similarity == pytest.approx(different.mean())
    assert study.pairs_alike == pytest.approx((different >= 0.53).mean()) and 0 < study.pairs_alike < 1


def test_what_is_not_finite_is_refused() -> None:
    part = measured()
    part.distilled[3, 2, 1] = np.nan
    with pytest.raises(NonFiniteError, match="NaN"):
        study_of(full(), [part], n_heads=N_HEADS, threshold=0.5)
