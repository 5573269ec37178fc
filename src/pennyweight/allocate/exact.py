"""The best choice there is, as an integer program.

One variable of 0 or 1 for each option of each unit; those of a unit sum to 1; the budget is one
more row. HAWQ-V3, https://arxiv.org/abs/2011.10680, section 3.3; HIGGS,
https://arxiv.org/abs/2411.17525, section 5. Solved by HiGHS, https://highs.dev, through scipy.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array, vstack

from pennyweight.allocate.base import (
    Choice,
    Option,
    Problem,
    allocator,
    choice,
    refuse_measure,
)
from pennyweight.allocate.greedy import Greedy, hull, steps

# HiGHS holds a row within 1e-6 of its bound. Scaled to this size that is 1e-8 of the budget.
ROW_SCALE = 1e2
OBJECTIVE_SCALE = 1e3  # of the greedy solution; a gap of 1e-6 is then 1e-9 of it
# Where rounding its near-integers still broke the budget, the next attempt leaves so much of it.
MARGINS = (0.0, 1e-7, 1e-5)


@allocator("exact")
@dataclass(frozen=True, kw_only=True)
class Exact:
    """the least there is, by integer programming"""

    nodes: int = 20_000  # of the search tree; `Choice.gap` says what was proven by then
    source: ClassVar[str] = "HAWQ-V3, arXiv:2011.10680; HiGHS through scipy"

    def __call__(self, problem: Problem, seed: int = 0) -> Choice:
        refuse_measure(problem, "exact")
        found = Greedy()(problem)
        for margin in MARGINS:
            picked = self._solve(problem, found, margin)
            if picked is None:  # nothing is better than the greedy solution
                return replace(found, gap=0.0)
            if problem.fits(math.fsum(map(problem.weight, picked.options))):
                better = choice(problem, list(picked.options))
                if getattr(better, problem.minimise) < getattr(found, problem.minimise):
                    return replace(better, gap=picked.gap)
                return replace(found, gap=picked.gap)
        return found

    def _solve(self, problem: Problem, known: Choice, margin: float) -> _Picked | None:
        """The best options, or None if none beat the known ones inside the narrowed budget."""
        kept, objective = _contenders(problem, getattr(known, problem.minimise))
        if any(len(options) == 0 for options in kept):
            return None
        # Counted from each unit's least weight, so that the slack and not the sum sets the scale.
        floor = [min(map(problem.weight, options)) for options in kept]
        weight = np.array(
            [problem.weight(o) - low for os, low in zip(kept, floor, strict=True) for o in os]
        )
        slack = (problem.budget - math.fsum(floor)) * (1 - margin)
        if slack < 0:
            return None
        scale = ROW_SCALE / (slack or weight.max(initial=0.0) or 1.0)
        sizes = [len(options) for options in kept]
        owner = np.repeat(np.arange(len(kept)), sizes)
        ones = csr_array((np.ones(len(owner)), (owner, np.arange(len(owner)))))
        rows = vstack([ones, csr_array(scale * weight[None])], format="csr")
        one = np.ones(len(kept))
        limits: dict[str, Any] = {
            "lb": np.append(one, -np.inf),
            "ub": np.append(one, scale * slack),
        }
        with _stdout_spared():
            found = milp(
                objective,
                integrality=np.ones(len(owner)),
                bounds=Bounds(0, 1),
                constraints=LinearConstraint(rows, **limits),
                options={"mip_rel_gap": 0.0, "node_limit": self.nodes},
            )
        if found.x is None:  # infeasible, or no better one within so many nodes
            return None
        starts = np.cumsum([0, *sizes])
        options = [
            options[int(found.x[start : start + len(options)].argmax())]
            for options, start in zip(kept, starts, strict=False)
        ]
        return _Picked(tuple(options), float(found.mip_gap or 0.0))


@dataclass(frozen=True)
class _Picked:
    options: tuple[Option, ...]
    gap: float


@contextmanager
def _stdout_spared() -> Iterator[None]:
    """HiGHS prints remarks on its own numerics to file descriptor 1, whatever it is told. They are
    dropped: standard output is for results, and `Choice.gap` says how good the solution is."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _contenders(problem: Problem, known: float) -> tuple[list[list[Option]], np.ndarray]:
    """The options that can be part of a solution better than `known`, and their objective above
    the least of their unit, scaled so that `known` is OBJECTIVE_SCALE above the bound.

    With a price on the budget, the sum over units of the least (objective + price * weight), less
    price * budget, is a lower bound of every solution (Lagrange). What an option has above the
    least of its unit adds to it; past `known` the option is out.
    """
    price = _price(problem)
    reduced = []
    for unit in problem.units:
        values = [problem.objective(o) + price * problem.weight(o) for o in unit.options]
        reduced.append((min(values), values))
    bound = math.fsum(low for low, _ in reduced) - price * problem.budget
    kept = [
        [o for o, v in zip(unit.options, values, strict=True) if bound + (v - low) <= known]
        for unit, (low, values) in zip(problem.units, reduced, strict=True)
    ]
    least = [min(map(problem.objective, options), default=0.0) for options in kept]
    above = [problem.objective(o) - a for os, a in zip(kept, least, strict=True) for o in os]
    scale = max(known - math.fsum(least), max(above, default=0.0)) or 1.0
    return kept, OBJECTIVE_SCALE / scale * np.array(above)


def _price(problem: Problem) -> float:
    """What the objective gains for the budget in the last step that the greedy solution takes."""
    hulls = [hull(problem, unit.options) for unit in problem.units]
    left = problem.budget - math.fsum(problem.weight(options[0]) for options in hulls)
    for slope, index, step in sorted(steps(problem, hulls)):
        left -= problem.weight(hulls[index][step]) - problem.weight(hulls[index][step - 1])
        if left < 0:
            return -slope
    return 0.0
