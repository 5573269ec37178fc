"""The best of so many random choices: the solver of the scaling-law paper.

https://arxiv.org/abs/2410.06722 draws 50 times which components are in low precision at a given
quantization ratio and measures each. The best of n draws depends on the number of units (of many
units every draw is close to the mean), so all trials are handed back beside the best one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random as Generator
from typing import ClassVar

from pennyweight.allocate.base import (
    Choice,
    Option,
    Problem,
    allocator,
    check,
    choice,
    out_of_reach,
)


@allocator("random")
@dataclass(frozen=True, kw_only=True)
class Random:
    """the best of random choices that use up the budget"""

    trials: int = 50
    source: ClassVar[str] = "Scaling Laws for Mixed Quantization, arXiv:2410.06722, section 3"

    def __call__(self, problem: Problem, seed: int = 0) -> Choice:
        check(problem)
        generator = Generator(f"{seed} random")
        draws = (self._draw(problem, generator, trial) for trial in range(self.trials))
        return best_of(problem, (choice(problem, picked) for picked in draws))

    def _draw(self, problem: Problem, generator: Generator, trial: int) -> list[Option]:
        if problem.measure is None or problem.bounded == "cost":
            return fill(problem, problem.weight, problem.budget, generator)
        if trial == 0:  # what loses least by the sum, so that something may be inside the budget
            return [min(unit.options, key=problem.weight) for unit in problem.units]
        # The budget is of what only a measurement knows: draw how much may be spent instead.
        low, high = (
            math.fsum(end(o.cost for o in unit.options) for unit in problem.units)
            for end in (min, max)
        )
        limit = low + generator.random() * (high - low)
        return fill(problem, lambda option: option.cost, limit, generator)


def best_of(problem: Problem, found) -> Choice:
    """The first of the best among choices, with the objective of every one that fits."""
    tried: list[Choice] = list(found)
    fitting = [one for one in tried if problem.fits(getattr(one, problem.bounded))]
    if not fitting:
        nearest = min(getattr(one, problem.bounded) for one in tried)
        error = out_of_reach(problem, [min(map(problem.weight, u.options)) for u in problem.units])
        raise type(error)(
            f"none of {len(tried)} trials fits, the nearest has {nearest:.4g}; {error}"
        )
    best = min(fitting, key=lambda one: getattr(one, problem.minimise))
    trials = tuple(getattr(one, problem.minimise) for one in fitting)
    return Choice(schemes=best.schemes, loss=best.loss, cost=best.cost, trials=trials)


def fill(
    problem: Problem, weight: Callable[[Option], float], limit: float, generator: Generator
) -> list[Option]:
    """A random option for each unit, in random order, as long as all of them fit; what is then
    left of the limit is used up in another random order."""
    least = [min(unit.options, key=weight) for unit in problem.units]
    picked, left = list(least), limit - math.fsum(map(weight, least))
    for index in _shuffled(len(picked), generator):
        room = left + weight(picked[index])
        fitting = [o for o in problem.units[index].options if weight(o) <= room] or [picked[index]]
        picked[index] = generator.choice(fitting)
        left = room - weight(picked[index])
    for index in _shuffled(len(picked), generator):
        room = left + weight(picked[index])
        fitting = [o for o in problem.units[index].options if weight(o) <= room] or [picked[index]]
        picked[index] = max(fitting, key=weight)
        left = room - weight(picked[index])
    return picked


def _shuffled(count: int, generator: Generator) -> list[int]:
    order = list(range(count))
    generator.shuffle(order)
    return order
