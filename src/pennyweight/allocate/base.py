"""The choice of one option for each of many units: the multiple-choice knapsack problem.

Each unit (one linear, or those that an engine fuses) has options, each with a loss and a cost, and
both add up over units. That the losses do is a model (HAWQ-V3, https://arxiv.org/abs/2011.10680,
section 3.3; the linearity theorem of HIGGS, https://arxiv.org/abs/2411.17525, section 3); whoever
can measure a whole assignment hands in `measure`, and a searcher uses that instead. A cost is
whatever adds up: bytes, seconds, or the parameters that stay in high precision, which makes the
quantization ratio of https://arxiv.org/abs/2410.06722 a cost like any other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

from pennyweight.core.errors import BudgetError, NumericalError, RecipeError
from pennyweight.core.registry import Registry

Assignment = Mapping[str, str]
"""Name of a unit -> scheme."""

ROUNDING = 1e-9  # relative: sums of the same numbers in another order differ by less
NAMED = 3  # units that an error names


@dataclass(frozen=True, kw_only=True)
class Option:
    """One way to store a unit."""

    scheme: str
    loss: float  # may be negative where it is measured: noise around nothing
    cost: float


@dataclass(frozen=True, kw_only=True)
class Unit:
    """What gets one scheme as a whole."""

    name: str
    options: tuple[Option, ...]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Minimise the cost with a loss of at most `budget`, or the loss with a cost of at most it."""

    units: tuple[Unit, ...]
    minimise: Literal["cost", "loss"]
    budget: float  # of the other one
    measure: Callable[[Assignment], float] | None = None  # the loss of a whole assignment

    @property
    def bounded(self) -> Literal["cost", "loss"]:
        """What the budget is of."""
        return "loss" if self.minimise == "cost" else "cost"

    def objective(self, option: Option) -> float:
        return getattr(option, self.minimise)

    def weight(self, option: Option) -> float:
        """What an option takes of the budget."""
        return getattr(option, self.bounded)

    def fits(self, total: float) -> bool:
        """Whether a sum is inside the budget, but for the rounding of the sum itself."""
        return total <= self.budget + ROUNDING * abs(self.budget)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """An assignment and what it comes to."""

    schemes: Assignment
    loss: float  # measured if the problem has a measure, else the sum
    cost: float
    trials: tuple[float, ...] = ()  # the objective of every trial inside the budget, in order
    gap: float | None = None  # relative, to the least there can be; 0 is proven, None unknown


@runtime_checkable
class Allocator(Protocol):
    """Solves a Problem. The seed is of its randomness; those without any ignore it."""

    source: ClassVar[str]  # where the method is described

    def __call__(self, problem: Problem, seed: int = 0) -> Choice:
        """Raises RecipeError and NumericalError for a problem that means nothing, BudgetError for a
        budget that nothing meets."""
        ...


ALLOCATORS: Registry[type[Allocator]] = Registry("allocator")
allocator = ALLOCATORS.register


def check(problem: Problem) -> None:
    """Raises RecipeError for units without options or of one name, NumericalError for a number
    that is not finite, and BudgetError if the least sum is above the budget."""
    if not problem.units:
        raise RecipeError("nothing to allocate: no units")
    if not math.isfinite(problem.budget):
        raise NumericalError(f"the budget is {problem.budget}; expected a number")
    if len({unit.name for unit in problem.units}) < len(problem.units):
        raise RecipeError("two units have one name; their choices could not be told apart")
    for unit in problem.units:
        _check_unit(unit)
    # A measured loss is not the sum, so that only trying can tell.
    if problem.measure is None or problem.bounded == "cost":
        least = [min(problem.weight(o) for o in unit.options) for unit in problem.units]
        if not problem.fits(math.fsum(least)):
            raise out_of_reach(problem, least)


def _check_unit(unit: Unit) -> None:
    if not unit.options:
        raise RecipeError(f"{unit.name}: has no option; expected at least one scheme")
    for option in unit.options:
        for what in ("loss", "cost"):
            if not math.isfinite(value := getattr(option, what)):
                raise NumericalError(
                    f"{unit.name}: the {what} of {option.scheme} is {value}; expected a number. "
                    "Was it measured on too little data, or is the model broken by this scheme?"
                )


def out_of_reach(problem: Problem, least: list[float]) -> BudgetError:
    """The error that says what can be reached, and which units take most of it."""
    order = sorted(range(len(least)), key=lambda i: -least[i])[:NAMED]
    blame = ", ".join(f"{problem.units[i].name} ({least[i]:.4g})" for i in order)
    return BudgetError(
        f"no choice has a {problem.bounded} of at most {problem.budget:.4g}; the least is "
        f"{math.fsum(least):.4g}, most of it from {blame}. Allow more, or offer these units a "
        f"scheme with less {problem.bounded}"
    )


def choice(problem: Problem, picked: list[Option], trials: tuple[float, ...] = ()) -> Choice:
    """What one option for each unit, in order, comes to."""
    schemes = {u.name: o.scheme for u, o in zip(problem.units, picked, strict=True)}
    return Choice(
        schemes=schemes,
        loss=total_loss(problem, schemes, picked),
        cost=math.fsum(o.cost for o in picked),
        trials=trials,
    )


def total_loss(problem: Problem, schemes: Assignment, picked: list[Option]) -> float:
    """Measured where the problem says how, else the sum."""
    if problem.measure is None:
        return math.fsum(option.loss for option in picked)
    return problem.measure(schemes)


def refuse_measure(problem: Problem, name: str) -> None:
    """For the allocators that can only add."""
    if problem.measure is not None:
        raise RecipeError(
            f"{name} adds up the losses of units and cannot use a measured loss; use random or tpe"
        )
