"""Step by step, each time the change that gives most for what it takes of the budget."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from pennyweight.allocate.base import (
    Choice,
    Option,
    Problem,
    allocator,
    check,
    choice,
    refuse_measure,
)


@allocator("greedy")
@dataclass(frozen=True, kw_only=True)
class Greedy:
    """the steepest steps first, along the convex hull of each unit's options"""

    source: ClassVar[str] = "Sinha and Zoltners 1979, The multiple-choice knapsack problem"

    def __call__(self, problem: Problem, seed: int = 0) -> Choice:
        refuse_measure(problem, "greedy")
        check(problem)
        hulls = [hull(problem, unit.options) for unit in problem.units]
        place = [0] * len(hulls)
        left = problem.budget - math.fsum(problem.weight(options[0]) for options in hulls)
        blocked = set()
        # A step that does not fit ends its own unit; cheaper steps of others may still fit.
        for _, index, step in sorted(steps(problem, hulls)):
            needed = problem.weight(hulls[index][step]) - problem.weight(hulls[index][step - 1])
            if index in blocked or needed > left:
                blocked.add(index)
                continue
            place[index], left = step, left - needed
        return choice(problem, [options[at] for options, at in zip(hulls, place, strict=True)])


def steps(problem: Problem, hulls: Sequence[Sequence[Option]]) -> Iterator[tuple[float, int, int]]:
    """Minus the gain per budget, the unit, and the step; along a hull the gains fall."""
    for index, options in enumerate(hulls):
        for step in range(1, len(options)):
            yield _slope(problem, options[step - 1], options[step]), index, step


def _slope(problem: Problem, a: Option, b: Option) -> float:
    """How the objective changes (it falls) for each unit of the budget from a to b."""
    taken = problem.weight(b) - problem.weight(a)
    return (problem.objective(b) - problem.objective(a)) / taken


def hull(problem: Problem, options: Sequence[Option]) -> list[Option]:
    """The options on the lower convex hull, from the one that takes least of the budget up."""
    found: list[Option] = []
    for option in sorted(options, key=lambda o: (problem.weight(o), problem.objective(o))):
        if found and problem.objective(option) >= problem.objective(found[-1]):
            continue
        while len(found) > 1 and _slope(problem, found[-2], found[-1]) >= _slope(
            problem, found[-1], option
        ):
            found.pop()
        found.append(option)
    return found
