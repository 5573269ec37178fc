"""A search that learns from its trials which options go with good results.

The tree-structured Parzen estimator, Bergstra et al. 2011, "Algorithms for Hyper-Parameter
Optimization", section 4, by Optuna. Worth its time where a loss is measured and does not add up.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from typing import Any, ClassVar

from pennyweight.allocate.base import Choice, Problem, allocator, check, choice
from pennyweight.allocate.random import best_of
from pennyweight.core.errors import UnsupportedError

LARGEST_SEED = 2**32


@allocator("tpe")
@dataclass(frozen=True, kw_only=True)
class TPE:
    """a search that models which options do well (needs the extra `search`)"""

    trials: int = 200
    source: ClassVar[str] = "Bergstra et al. 2011, NeurIPS; Optuna"

    def __call__(self, problem: Problem, seed: int = 0) -> Choice:
        check(problem)
        optuna = _optuna()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(seed=seed % LARGEST_SEED)
        study = optuna.create_study(sampler=sampler)
        found: list[Choice] = []
        # What takes least of the budget comes first, so that something fits if anything does.
        least = {
            str(i): min(range(len(u.options)), key=lambda o, u=u: problem.weight(u.options[o]))
            for i, u in enumerate(problem.units)
        }
        study.enqueue_trial(least)
        study.optimize(lambda trial: _trial(problem, trial, found), n_trials=self.trials)
        return best_of(problem, found)


def _trial(problem: Problem, trial: Any, found: list[Choice]) -> float:
    """The objective, scaled to 0..1; outside the budget 1 and by how far, so that it is worse."""
    picked = [
        unit.options[trial.suggest_categorical(str(index), list(range(len(unit.options))))]
        for index, unit in enumerate(problem.units)
    ]
    found.append(choice(problem, picked))
    total = getattr(found[-1], problem.bounded)
    if problem.fits(total):
        return math.atan(_scaled(problem, problem.objective, getattr(found[-1], problem.minimise)))
    return math.pi / 2 + (total - problem.budget) / _spread(problem, problem.weight)


def _scaled(problem: Problem, of: Any, value: float) -> float:
    low = math.fsum(min(map(of, unit.options)) for unit in problem.units)
    return (value - low) / _spread(problem, of)


def _spread(problem: Problem, of: Any) -> float:
    spans = (_span([of(option) for option in unit.options]) for unit in problem.units)
    return math.fsum(spans) or 1.0


def _span(values: list[float]) -> float:
    return max(values) - min(values)


def _optuna() -> Any:
    try:
        return importlib.import_module("optuna")
    except ImportError:
        raise UnsupportedError(
            "tpe needs Optuna, which is not installed: pip install 'pennyweight[search]'"
        ) from None
