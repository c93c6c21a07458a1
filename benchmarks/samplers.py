"""Samplers for the search of per-layer Subnets, at equal numbers of scored Subnets, from the same seeds, on one run.

    DYNABERT_DATA=DIR python benchmarks/samplers.py --run runs/four/trec --share 0.25 --trials 150 --json FILE

Prints the distance from the full network on the `select` rows of the best Subnet after 50, 100, ... proposals. `pymoo`
(pip install pymoo) is a genetic algorithm with a repair that writes the fitted Subnet back and a mutation of its own;
the others are optuna's, as they come.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from common import finish, machine, options, table

from dynabert.loading import load_tokenizer
from dynabert.precision import TrainingViews
from dynabert.results import load_result
from dynabert.saved import Saved
from dynabert.search import CostLimit, seeds_of, space_of
from dynabert.search.explore import N_FIRST
from dynabert.search.sampling import Sampler
from dynabert.search.scoring import Scorer
from dynabert.search.space import Choice, Space

SAMPLERS: dict[str, Callable[[int, int], Any]] = {
    "tpe": lambda seed, n: optuna.samplers.TPESampler(multivariate=True, n_startup_trials=n, seed=seed),
    "nsga2": lambda seed, n: optuna.samplers.NSGAIISampler(population_size=n, seed=seed),
    "gp": lambda seed, n: optuna.samplers.GPSampler(n_startup_trials=n, deterministic_objective=True, seed=seed),
}


def by_optuna(name: str, space: Space, first: list[Choice], n: int, seed: int, loss: Callable[[Choice], float]) -> None:
    """The seeds again, then so many proposals of one of optuna's samplers."""
    sampler = Sampler(space, first, seed=seed, algorithm=SAMPLERS[name](seed, len(first)))
    for _ in range(len(first) + n):
        sampler.tell(loss(sampler.ask()))


def by_pymoo(space: Space, first: list[Choice], n: int, seed: int, loss: Callable[[Choice], float]) -> None:
    """A genetic algorithm: uniform crossover, small steps on few axes, fitted Subnets written back."""
    from pymoo.algorithms.soo.nonconvex.ga import GA
    from pymoo.core.mutation import Mutation
    from pymoo.core.problem import ElementwiseProblem
    from pymoo.core.repair import Repair
    from pymoo.operators.crossover.ux import UX
    from pymoo.optimize import minimize

    layers = space.shape.n_layers
    low = np.array([0] + [1] * 2 * layers, float)
    high = np.array([len(space.patterns) - 1] + [space.shape.n_heads] * layers + [space.n_levels] * layers, float)

    def choice(values: np.ndarray) -> Choice:
        pattern, *wishes = (int(value) for value in np.clip(np.rint(values), low, high))
        return Choice(pattern, tuple(wishes[:layers]), tuple(wishes[layers:]))

    def values(one: Choice) -> np.ndarray:
        return np.array([one.pattern, *one.heads, *one.levels], float)

    class Distance(ElementwiseProblem):
        def __init__(self) -> None:
            super().__init__(n_var=len(low), n_obj=1, xl=low, xu=high)

        def _evaluate(self, x: np.ndarray, out: dict[str, Any], *_: object, **__: object) -> None:
            out["F"] = loss(choice(x))

    class Fitted(Repair):
        def _do(self, _: object, X: np.ndarray, **__: object) -> np.ndarray:
            fitted = (space.choice_of(space.fitted(choice(x)).slices(space.shape)) for x in X)
            return np.array([values(one) for one in fitted if one])  # each has a pattern's layers, so is there

    class Steps(Mutation):
        def _do(self, _: object, X: np.ndarray, *, random_state: np.random.Generator, **__: object) -> np.ndarray:
            X = X.copy()
            for x in X:
                for axis in random_state.integers(1, len(low), random_state.integers(1, 4)):
                    x[axis] += np.rint(random_state.normal(0, 0.15 * (high - low)[axis])) or 1
                if random_state.random() < 0.05:
                    x[0] = random_state.integers(0, len(space.patterns))
            return np.clip(X, low, high)

    algorithm = GA(
        pop_size=len(first),
        n_offsprings=len(first) // 2,
        sampling=np.array([values(one) for one in first]),
        crossover=UX(),
        mutation=Steps(prob=0.9),
        repair=Fitted(),
        eliminate_duplicates=True,
    )
    minimize(Distance(), algorithm, ("n_eval", len(first) + n), seed=seed, verbose=False)


def main() -> None:
    """Score the seeds, then let every sampler go on from the best of them."""
    chosen = options(
        __doc__,
        run={"type": Path, "required": True, "help": "a finished run folder"},
        share={"type": float, "default": 0.25, "help": "of the full network's FLOPs"},
        trials={"type": int, "default": 150, "help": "proposals of each sampler"},
        seeds={"type": int, "default": 1, "help": "of the samplers"},
        samplers={"default": "tpe,nsga2,gp,pymoo", "help": "comma-separated"},
    )
    n = 10 if chosen.quick else chosen.trials
    elastic, saved = load_result(chosen.run), Saved.of(chosen.run)
    space, prepared = (
        space_of(elastic, CostLimit(share=chosen.share)),
        saved.rows(load_tokenizer(chosen.run / "elastic")),
    )
    elastic.to(chosen.device)
    views = TrainingViews(elastic, precision=saved.plan.training.precision)
    score = Scorer(views.at, prepared.select, task=prepared.task)
    seeds = list(seeds_of(chosen.run, elastic, space))[: N_FIRST if chosen.quick else None]
    first = sorted(dict.fromkeys(seeds), key=lambda one: score(space.fitted(one)).loss)[:N_FIRST]
    rows = []
    for name, seed in _jobs(chosen.samplers.split(","), chosen.seeds):
        losses: list[float] = []

        def loss(choice: Choice, losses: list[float] = losses) -> float:
            losses.append(score(space.fitted(choice)).loss)
            return losses[-1]

        started = time.perf_counter()
        if name == "pymoo":
            by_pymoo(space, first, n, seed, loss)
        else:
            by_optuna(name, space, first, n, seed, loss)
        best = np.minimum.accumulate(losses)
        at = {str(k): round(float(best[len(first) + k - 1]), 5) for k in range(50, n + 1, 50)} or {str(n): best[-1]}
        rows.append({"sampler": name, "seed": seed, "seeds": round(float(best[len(first) - 1]), 5), **at})
        rows[-1]["seconds"] = round(time.perf_counter() - started)
    table(rows)
    finish({"machine": machine(chosen.device), "share": chosen.share, "rows": rows}, chosen.json)


def _jobs(names: list[str], n_seeds: int) -> Iterator[tuple[str, int]]:
    return ((name, seed) for seed in range(n_seeds) for name in names)


if __name__ == "__main__":
    main()
