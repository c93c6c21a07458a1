"""The search itself, on objects in memory: seeds first, then what a sampler proposes, until the effort is spent."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from dynabert.errors import SettingError
from dynabert.search.sampling import Sampler
from dynabert.search.scoring import Score, Scorer
from dynabert.search.space import Choice, Space
from dynabert.subnet import Subnet

N_FIRST = 24
"""The best seeds, from which the sampler starts."""

N_KNOWN = 100
"""So many proposals one after the other that were all tried before end a search: little else is left to try."""


@dataclass(frozen=True)
class Effort:
    """How long a search goes on.

    :param minutes: at most, from the start of the search, those of earlier runs of the same search included. The rows
        of the grid are scored whatever it is, or a single Subnet where none of them is within the budget.
    :param trials: Subnets at most, seeds included; None: as many as the time allows.
    :param seed: of the random numbers.
    :raises SettingError: no time or no trials.
    """

    minutes: float = 10.0
    trials: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.minutes > 0 or (self.trials is not None and self.trials < 1):
            raise SettingError(
                f"minutes {self.minutes:g} and trials {self.trials} must be above 0; 10 and none are usual"
            )


@dataclass
class Pace:
    """How much of an effort is spent; a search that goes on counts what its earlier runs spent.

    :param n_earlier: Subnets that earlier runs of this very search went through. They are known, and gone through again
        without looking at the clock, so that the same command ends at the same place.
    :param s_earlier: seconds that earlier runs took.
    :param since: when this run began, by the clock; by default now.
    """

    effort: Effort
    n_earlier: int = 0
    s_earlier: float = 0.0
    clock: Callable[[], float] = time.monotonic
    n: int = 0
    since: float | None = None

    def __post_init__(self) -> None:
        self._began = self.clock() if self.since is None else self.since

    @property
    def seconds(self) -> float:
        """Spent so far, all that this run took included, unless it tried nothing that earlier ones had not tried."""
        return self.s_earlier if self.n <= self.n_earlier else self._passed

    @property
    def reached(self) -> int:
        """How many Subnets this search has gone through in any of its runs."""
        return max(self.n, self.n_earlier)

    @property
    def _passed(self) -> float:
        return self.s_earlier + self.clock() - self._began

    @property
    def goes_on(self) -> bool:
        """Whether another Subnet may be tried."""
        if self.effort.trials is not None and self.n >= self.effort.trials:
            return False
        if self.n < max(self.n_earlier, 1):
            return True
        return self._passed < 60 * self.effort.minutes

    @property
    def share(self) -> float:
        """Of the effort, in [0, 1]."""
        spent = self.seconds / (60 * self.effort.minutes)
        if self.effort.trials is not None:
            spent = max(spent, self.n / self.effort.trials)
        return min(1.0, spent)


def explore(
    space: Space,
    score: Scorer,
    *,
    uniform: Iterable[Subnet],
    seeds: Iterable[Choice],
    pace: Pace,
) -> Iterator[tuple[Subnet, Score]]:
    """Try Subnets, the uniform ones first, one after the other.

    :param space: what may be tried.
    :param score: tells how good a Subnet is.
    :param uniform: Subnets of the grid within the budget; all of them are scored on all rows, whatever the effort.
    :param seeds: choices to begin with, the most promising first.
    :param pace: when to stop.
    :return: each Subnet with its score, once.
    """
    best: Score | None = None
    losses: dict[Choice, float] = {}
    seen: set[str] = set()
    for subnet in uniform:
        found = score(subnet)
        pace.n += 1
        best = found if best is None or found.loss < best.loss else best
        yield subnet, found
    n_known = 0
    proposals = _proposals(space, seeds, losses, pace.effort.seed)
    while n_known < N_KNOWN and pace.goes_on and (choice := next(proposals, None)) is not None:
        subnet = space.fitted(choice)
        found = score(subnet, best)
        losses[choice] = found.loss if best is None else found.beside(best) * best.loss
        if found.metric is not None and (best is None or found.loss < best.loss):
            best = found
        pace.n += 1
        n_known += 1
        if subnet.name not in seen:
            seen.add(subnet.name)
            n_known = 0
            yield subnet, found


def _proposals(space: Space, seeds: Iterable[Choice], losses: dict[Choice, float], seed: int) -> Iterator[Choice]:
    """The seeds, then endlessly what a sampler proposes.

    :param losses: by choice; whoever asks for the next proposal has put in that of the last one.
    """
    yield from seeds
    first = sorted(losses, key=lambda choice: losses[choice])[:N_FIRST]
    sampler = Sampler(space, first, seed=seed)
    while True:
        choice = sampler.ask()
        yield choice
        sampler.tell(losses[choice])
