"""The folder ``RUN/search``: a file for each budget, with every Subnet that was scored, so that none is scored twice.

What a file knows counts only for the network and the rows that it was made with.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dynabert.errors import DynabertError
from dynabert.files import read_json, storage_errors, write_json
from dynabert.search.scoring import Score
from dynabert.search.space import Price

FORMAT_VERSION = 1
FOLDER = "search"


@dataclass(frozen=True)
class Earlier:
    """What earlier searches left.

    :param scores: of all budgets, by the name of the Subnet.
    :param n: Subnets that this very search has gone through.
    :param seconds: that this took.
    """

    scores: Mapping[str, Score]
    n: int = 0
    seconds: float = 0.0


class Store:
    """Where the searches of a run are kept.

    :param run: the run folder.
    :param name: of the budget.
    :param fingerprint: of the network, the rows and how they are predicted.
    :param seed: of the search: with another one it begins anew, with the scores that are known.
    :param price: of Subnets: likewise, for latency that is measured again gives others.
    """

    def __init__(self, run: Path, name: str, *, fingerprint: str, seed: int, price: Price) -> None:
        self.path = run / FOLDER / f"{name}.json"
        self._same = {"format_version": FORMAT_VERSION, "fingerprint": fingerprint}
        self._search = {"seed": seed, "price": asdict(price)}
        self._kept: dict[str, Score] = {}

    def load(self) -> Earlier:
        """What is known. A file that is damaged, or of another network, is as if it were not there."""
        scores: dict[str, Score] = {}
        n, seconds = 0, 0.0
        for path in sorted(self.path.parent.glob("*.json")):
            try:
                saved = read_json(path)
                if any(saved[name] != value for name, value in self._same.items()):
                    continue
                known = {name: Score.from_dict(score) for name, score in saved["scores"].items()}
                scores |= known
                if path != self.path:
                    continue
                self._kept = known
                if all(saved[name] == value for name, value in self._search.items()):
                    n, seconds = int(saved["n"]), float(saved["seconds"])
            except (DynabertError, KeyError, TypeError, ValueError, AttributeError):
                continue
        return Earlier(scores, n, seconds)

    def save(
        self, scores: Mapping[str, Score], *, n: int, seconds: float, result: Mapping[str, Any] | None = None
    ) -> None:
        """Write what is known by now. Scores that the file had when it was loaded stay in it.

        :param scores: of the Subnets of this search, by name.
        :param n: proposals that it has gone through.
        :param seconds: spent on it.
        :param result: what it has found, once it is done.
        """
        with storage_errors(self.path):
            self.path.parent.mkdir(exist_ok=True)
        progress = {**self._search, "n": n, "seconds": seconds}
        plain = {name: score.to_dict() for name, score in {**self._kept, **scores}.items()}
        write_json(self.path, {**self._same, **progress, "result": result, "scores": plain})
