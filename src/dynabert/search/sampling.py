"""Where a search looks next: optuna proposes choices, learns how good they were, and proposes better ones."""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dynabert.errors import SettingError
from dynabert.search.space import Choice, Space

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.samplers import BaseSampler


class Sampler:
    """Proposes choices one by one; the same seed and the same answers give the same proposals.

    :param space: that they come from.
    :param first: good choices, proposed before all others.
    :param seed: of the random numbers.
    :param algorithm: another of optuna's samplers; by default the tree-structured Parzen estimator.
    :raises SettingError: optuna is not installed.
    """

    def __init__(
        self, space: Space, first: Sequence[Choice], *, seed: int, algorithm: "BaseSampler | None" = None
    ) -> None:
        optuna = import_optuna()
        self._n_layers = space.shape.n_layers
        whole, one_of = optuna.distributions.IntDistribution, optuna.distributions.CategoricalDistribution
        self._axes: dict[str, Any] = {"pattern": one_of(tuple(range(len(space.patterns))))}
        for layer in range(self._n_layers):
            self._axes[f"heads {layer}"] = whole(1, space.shape.n_heads)
            self._axes[f"levels {layer}"] = whole(1, space.n_levels)
        if algorithm is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                algorithm = optuna.samplers.TPESampler(multivariate=True, n_startup_trials=len(first), seed=seed)
        self._study: Study = optuna.create_study(sampler=algorithm)
        self._asked: Trial | None = None
        for choice in first:
            self._study.enqueue_trial(self._values(choice))

    def ask(self) -> Choice:
        """The next choice; say with `tell` how good it was before asking again."""
        self._asked = self._study.ask(self._axes)
        values = self._asked.params
        layers = range(self._n_layers)
        heads, levels = (tuple(values[f"{unit} {layer}"] for layer in layers) for unit in ("heads", "levels"))
        return Choice(values["pattern"], heads, levels)

    def tell(self, loss: float) -> None:
        """How good the last choice was; lower is better."""
        assert self._asked is not None, "tell follows ask"
        self._study.tell(self._asked, loss)

    def _values(self, choice: Choice) -> dict[str, int]:
        values = {"pattern": choice.pattern}
        for layer in range(self._n_layers):
            values[f"heads {layer}"], values[f"levels {layer}"] = choice.heads[layer], choice.levels[layer]
        return values


def import_optuna() -> Any:  # noqa: ANN401 (an optional package)
    """The package, told to be quiet.

    :raises SettingError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise SettingError("a search needs optuna: pip install 'dynabert[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
