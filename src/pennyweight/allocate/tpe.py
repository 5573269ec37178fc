"""A search that learns from its trials which options go with good results.

The tree-structured Parzen estimator, Bergstra et al. 2011, "Algorithms for Hyper-Parameter
Optimization", section 4, by Optuna. Worth its time where a loss is measured and does not add up.

With a storage the trials outlive the process: a search that was stopped continues, and several
processes share one. What a trial tries depends on the seed, its number and the trials before it,
and not on which process makes it.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
from dataclasses import dataclass
from typing import Any, ClassVar

from pennyweight.allocate.base import Choice, Problem, allocator, check, choice
from pennyweight.allocate.random import best_of
from pennyweight.core.errors import CheckpointError, UnsupportedError


@allocator("tpe")
@dataclass(frozen=True, kw_only=True)
class TPE:
    """a search that models which options do well (needs the extra `search`)"""

    trials: int = 200  # of all processes together
    storage: str = ""
    """Where trials are kept: a journal file, or the URL of an SQL database. A search goes on where
    units, options, budget and seed are the same; of two problems that differ in what `measure`
    measures alone nobody here can know, so that each needs a storage of its own."""

    source: ClassVar[str] = "Bergstra et al. 2011, NeurIPS; Optuna"

    def __call__(self, problem: Problem, seed: int = 0) -> Choice:
        """Raises CheckpointError for a storage that cannot be used."""
        check(problem)
        optuna = _optuna()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = _study(optuna, self.storage, problem, seed)
        while len(finished := _finished(optuna, study)) < self.trials:
            _try(problem, study)
        return best_of(problem, (_choice(problem, trial) for trial in finished if trial.values))


def _least(problem: Problem) -> dict[str, int]:
    return {
        str(index): min(
            range(len(unit.options)), key=lambda o, u=unit: problem.weight(u.options[o])
        )
        for index, unit in enumerate(problem.units)
    }


def _try(problem: Problem, study: Any) -> None:
    trial = study.ask()
    picked = [
        unit.options[trial.suggest_categorical(str(index), list(range(len(unit.options))))]
        for index, unit in enumerate(problem.units)
    ]
    found = choice(problem, picked)
    trial.set_user_attr("loss", found.loss)  # it may be measured, and others want to know it too
    study.tell(trial, _value(problem, found))


def _value(problem: Problem, found: Choice) -> float:
    """The objective, scaled to 0..1; outside the budget 1 and by how far, so that it is worse."""
    total = getattr(found, problem.bounded)
    if problem.fits(total):
        return math.atan(_scaled(problem, problem.objective, getattr(found, problem.minimise)))
    return math.pi / 2 + (total - problem.budget) / _spread(problem, problem.weight)


def _scaled(problem: Problem, of: Any, value: float) -> float:
    low = math.fsum(min(map(of, unit.options)) for unit in problem.units)
    return (value - low) / _spread(problem, of)


def _spread(problem: Problem, of: Any) -> float:
    spans = (_span([of(option) for option in unit.options]) for unit in problem.units)
    return math.fsum(spans) or 1.0


def _span(values: list[float]) -> float:
    return max(values) - min(values)


def _finished(optuna: Any, study: Any) -> list[Any]:
    """Trials that ended, in whichever process; a loss that is no number leaves one without a
    value."""
    states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.FAIL)
    return study.get_trials(deepcopy=False, states=states)


def _choice(problem: Problem, trial: Any) -> Choice:
    picked = [u.options[trial.params[str(index)]] for index, u in enumerate(problem.units)]
    schemes = {u.name: o.scheme for u, o in zip(problem.units, picked, strict=True)}
    cost = math.fsum(option.cost for option in picked)
    return Choice(schemes=schemes, loss=trial.user_attrs["loss"], cost=cost)


def _sampler(optuna: Any, seed: int) -> Any:
    """TPE that draws anew for every number of a trial: processes that share a search would
    otherwise all draw the same, and one that continues would draw its first trials again."""

    class Numbered(optuna.samplers.BaseSampler):
        def before_trial(self, study: Any, trial: Any) -> None:
            drawn = int.from_bytes(_digest(seed, trial.number)[:4], "big")
            self.of_trial = optuna.samplers.TPESampler(seed=drawn)
            self.of_trial.before_trial(study, trial)

        def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
            return self.of_trial.infer_relative_search_space(study, trial)

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> Any:
            return self.of_trial.sample_relative(study, trial, search_space)

        def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
            return self.of_trial.sample_independent(study, trial, name, distribution)

    return Numbered()


def _study(optuna: Any, storage: str, problem: Problem, seed: int) -> Any:
    """The search as far as it got. Raises CheckpointError if the storage cannot be used."""
    try:
        study = optuna.create_study(
            storage=_opened(optuna, storage), study_name=_name(problem, seed),
            sampler=_sampler(optuna, seed), load_if_exists=True,
        )  # fmt: skip
        # What takes least of the budget comes first, so that something fits if anything does.
        study.enqueue_trial(_least(problem), skip_if_exists=True)
    except (ValueError, OSError, ImportError, *_storage_errors(optuna)) as error:
        said = " ".join(str(error).split())
        raise CheckpointError(
            f"tpe: storage {storage}: cannot be used ({type(error).__name__}: {said:.200}); "
            "expected a journal that Optuna wrote, a new file, or a URL such as sqlite:///tpe.db"
        ) from None
    return study


def _opened(optuna: Any, storage: str) -> Any:
    """A journal is a file that lines are added to; several processes may do that at once."""
    if not storage or "://" in storage:
        return storage or None
    journal = optuna.storages.journal
    return optuna.storages.JournalStorage(journal.JournalFileBackend(storage))


def _storage_errors(optuna: Any) -> tuple[type[Exception], ...]:
    from sqlalchemy.exc import SQLAlchemyError  # comes with Optuna

    return optuna.exceptions.StorageInternalError, SQLAlchemyError


def _name(problem: Problem, seed: int) -> str:
    """The same for the same search."""
    units = [[u.name, [[o.scheme, o.loss, o.cost] for o in u.options]] for u in problem.units]
    whole = [units, problem.minimise, problem.budget, problem.measure is not None]
    return f"pennyweight-{_digest(seed, whole).hex()[:32]}"


def _digest(seed: int, value: Any) -> bytes:
    return hashlib.sha256(json.dumps([seed, value]).encode()).digest()


def _optuna() -> Any:
    try:
        return importlib.import_module("optuna")
    except ImportError:
        raise UnsupportedError(
            "tpe needs Optuna, which is not installed: pip install 'pennyweight[search]'"
        ) from None
