"""The loop that turns a model of the loss into a measured plan.

The sum of what units lose alone predicts what they lose together up to a factor, which differs from
model to model and text to text. So: choose by the sum, build and measure what was chosen, correct
the factor by what was observed, choose again. Every measured candidate tells where the budget lies
among the sums: below the cheapest that was inside, and above the next that was not. It ends when
there is no candidate left between these two.

The interval of a score is mostly that of its few items and does not shrink with the sum, so that no
factor leads from it to the budget. There the search halves: the next sum lies (geometrically) in
the middle of what is known on both sides.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from pennyweight.allocate.base import Allocator, Assignment, Problem, Unit
from pennyweight.core import BudgetError, DataError
from pennyweight.study.planning.candidate import Candidate

AIM = 0.97  # of the budget: the upper end of the next interval should be just inside
STEP = 4.0  # how far to go where nothing was lost at all, or nothing is known below
LAST_CHANCE = 0.8  # of the sum that should do, if no candidate is left after it
LEAST_SLOPE = 0.25  # below it a step would go too far on too little
JUST_BELOW = 1 - 1e-6  # more than what allocators allow for the rounding of sums


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Every candidate that was built, in order, and the cheapest that is inside."""

    candidates: tuple[Candidate, ...]
    best: Candidate | None
    tight: bool  # the next cheaper candidate was measured, too, and is not inside
    correction: float  # of the sum, as last observed


def cheapest(
    units: tuple[Unit, ...], budget: float, allocator: Allocator, seed: int = 0
) -> Assignment:
    """The assignment that costs least with losses of at most `budget`, and of those that cost as
    much the one that loses least: bytes are often equal, and the rest of a budget is not to be
    spent on nothing. Raises BudgetError."""
    first = allocator(Problem(units=units, minimise="cost", budget=budget), seed)
    second = allocator(Problem(units=units, minimise="loss", budget=first.cost), seed)
    return second.schemes if second.loss < first.loss else first.schemes


@dataclass(kw_only=True)
class Search:
    """Losses are in nats a token; `allocate` gives the cheapest assignment whose sum is at most its
    argument and raises BudgetError where there is none; `build` measures an assignment, given the
    correction so far."""

    limit: float
    least: float  # sum of the least losses: below it `allocate` has nothing to give
    smallest: float  # the smallest loss above 0 of any option
    allocate: Callable[[float], Assignment]
    build: Callable[[Assignment, float], Candidate]
    upper: Callable[[Candidate], float]  # end of the interval of what was lost
    value: Callable[[Candidate], float]
    rounds: int = 6
    scales: bool = True  # the end of the interval grows as the sum does; if not, halve
    found: list[Candidate] = field(default_factory=list)

    def __call__(self) -> Outcome:
        """Raises DataError where there is too little text for an interval."""
        tight = False
        while len(self.found) < self.rounds:
            schemes = self._next()
            if schemes is None:
                tight = True
                break
            self.found.append(self.build(schemes, self.correction))
            if math.isnan(self.upper(self.found[-1])):
                raise DataError("one window of text has no interval; give more text with --data")
        return Outcome(
            candidates=tuple(self.found), best=self.best, tight=tight, correction=self.correction
        )

    @property
    def best(self) -> Candidate | None:
        inside = [one for one in self.found if one.inside]
        return min(inside, key=lambda one: one.cost, default=None)

    @property
    def correction(self) -> float:
        """Observed over summed, of the last candidate that lost anything."""
        for one in reversed(self.found):
            if one.summed > 0 and self.value(one) > 0:
                return self.value(one) / one.summed
        return 1.0

    @property
    def _outside(self) -> float:
        """The least sum that is known to be too much, above the best that is inside."""
        low = self.best.summed if self.best else -math.inf
        return min(
            (o.summed for o in self.found if not o.inside and o.summed > low), default=math.inf
        )

    def _next(self) -> Assignment | None:
        """What to build next; None if all that could be cheaper or safer was built."""
        known = [one.schemes for one in self.found]
        for target in (self._target(), self._middle, self._outside * JUST_BELOW, self.least):
            if math.isinf(target):
                continue
            schemes = self._allocated(target)
            if schemes not in known and not (self.best and target == self.least):
                return schemes
        return None

    def _allocated(self, target: float) -> Assignment:
        try:
            return self.allocate(target)
        except BudgetError:
            return self.allocate(self.least)

    def _target(self) -> float:
        """The sum whose upper end should be just inside, between what is known on both sides."""
        if not self.found:
            return self.limit
        if not self.scales:
            return self._middle
        last, low, high = self.found[-1], self.best.summed if self.best else 0.0, self._outside
        upper = self.upper(last)
        if upper > 0 and last.summed > 0:
            guess = last.summed * (self.limit * AIM / upper) ** (1 / self._slope)
        else:
            guess = STEP * max(last.summed, self.smallest)
        if self.best is None and len(self.found) == self.rounds - 1:
            guess *= LAST_CHANCE  # rather a plan that costs a little too much than none
        if low < guess < high:
            return guess
        return self._middle

    @property
    def _slope(self) -> float:
        """How the log of the interval's end follows that of the sum, from the last two candidates:
        a sum of estimates need not be proportional to what is measured."""
        ends = [(o.summed, self.upper(o)) for o in self.found if o.summed > 0 and self.upper(o) > 0]
        if len(ends) < 2 or ends[-1][0] == ends[-2][0]:
            return 1.0
        sums, uppers = (math.log(b / a) for a, b in zip(*ends[-2:], strict=True))
        return min(max(uppers / sums, LEAST_SLOPE), 1 / LEAST_SLOPE)

    @property
    def _middle(self) -> float:
        """Between what is known to be inside and what is known to be too much; further up where
        nothing is."""
        low, high = self.best.summed if self.best else 0.0, self._outside
        if math.isinf(high):
            return STEP * max(low, self.smallest)
        return math.sqrt(max(low, high / STEP**2) * high)
