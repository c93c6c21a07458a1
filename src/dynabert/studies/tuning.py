"""How a study chooses learning rates, and what studies say and refuse alike."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from dynabert.errors import NonFiniteError, SettingError
from dynabert.studies.trials import Trial

log = logging.getLogger("dynabert")

N_RESAMPLES = 20_000
"""Of rows and seeds, in every interval of a study: so many that a p value can pass correction for a hundred tests."""


@dataclass(frozen=True, eq=False)
class Tuned:
    """A learning rate that was chosen, and what was trained with it.

    :param trials: one for each seed.
    :param at_edge: the rate is the lowest or the highest of several that were tried: a better one may lie beyond.
    """

    lr: float
    trials: list[Trial]
    at_edge: bool


def tuned(
    train: Callable[[float, int], Trial],
    rates: Sequence[float],
    seeds: Sequence[int],
    *,
    score: Callable[[Trial], float],
) -> Tuned:
    """Choose a learning rate with the first seed, and train with all.

    Where the best of several rates is the lowest or the highest, one more is tried, a third or thrice of it.

    :param train: gives the trial of a rate and a seed.
    :param score: of a trial, on the `select` rows; higher is better.
    :raises NonFiniteError: training fails at every rate. One at which it fails alone is told and not chosen.
    """
    failures: list[NonFiniteError] = []

    def scored(lr: float) -> float:
        try:
            return score(train(lr, seeds[0]))
        except NonFiniteError as error:
            log.warning("learning rate %g is not chosen: %s", lr, error)
            failures.append(error)
            return float("-inf")

    scores = {lr: scored(lr) for lr in rates}
    if len(failures) == len(scores):
        raise failures[0]
    best = max(scores, key=scores.__getitem__)
    if _at_edge(best, scores):
        beyond = _rounded(best / 3 if best == min(scores) else best * 3)
        scores[beyond] = scored(beyond)
        best = max(scores, key=scores.__getitem__)
    return Tuned(best, [train(best, seed) for seed in seeds], _at_edge(best, scores))


def n_trainings(rates: Sequence[float], seeds: Sequence[int], *, choosers: int = 1) -> int:
    """How many trainings `tuned` does at most.

    :param choosers: how many choose a rate for themselves among the same trainings, with one more beyond either end.
    """
    several = len(set(rates)) > 1
    return len(set(rates)) + several * min(choosers, 2) + (choosers if several else 1) * (len(seeds) - 1)


def _at_edge(lr: float, tried: Iterable[float]) -> bool:
    rates = sorted(tried)
    return len(rates) > 1 and lr in (rates[0], rates[-1])


def _rounded(lr: float) -> float:
    """To three digits, so that a rate reads as it was used."""
    return float(f"{lr:.3g}")


def rate_text(lr: float | None, *, at_edge: bool) -> str:
    """A learning rate as tables have it.

    :param lr: None where tasks or seeds differ in it.
    :param at_edge: a star says that it is the lowest or the highest that was tried.
    """
    return ("several" if lr is None else f"{lr:.3g}") + ("*" if at_edge else "")


def counted(seeds: Sequence[int]) -> str:
    """How many there are, in words."""
    return "1 seed" if len(seeds) == 1 else f"{len(seeds)} seeds"


def covering(seeds: Sequence[int]) -> str:
    """What the intervals of a study hold: of one seed nothing is known of other trainings."""
    return "over rows of one training, another seed may differ by more" if len(seeds) == 1 else "over rows and seeds"


def check_settings(runs: Sequence[object], *, n_seeds: int, budget: float, lrs: Sequence[float]) -> None:
    """Refuse what no study can be made of.

    :raises SettingError: no runs or seeds, or rates or a budget that are not above 0, or infinite.
    """
    if not runs:
        raise SettingError("no runs given; give the folder of one at least")
    for name, values in (("seeds", (n_seeds,)), ("budget", (budget,)), ("learning rate", tuple(lrs))):
        for value in values:
            if not 0 < value < float("inf"):
                raise SettingError(f"{name} {value:g} must be above 0, and finite")
