"""From the summed KL of units to the score that a task loses: a monotone map through measurements.

Sensitivities are in nats and a task is scored in right answers; how many of these a nat costs is
another number for each model and task, and nobody knows it beforehand. That more nats cost no fewer
answers is all that is assumed: what candidates lost is made non-decreasing in their sums, with the
least squared change (isotonic regression; Barlow et al. 1972, "Statistical Inference under Order
Restrictions"), which also averages the noise of few items. Between two sums it is linear.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import isotonic_regression

from pennyweight.study.planning.candidate import Candidate


@dataclass(frozen=True, kw_only=True)
class ScoreMap:
    """Points (sum in nats, loss in percent of the score), both increasing, the first at 0."""

    sums: tuple[float, ...]
    losses: tuple[float, ...]
    start: Callable[[float], float]  # where nothing is measured: increasing, 0 at 0

    @classmethod
    def through(cls, known: Sequence[Candidate], start: Callable[[float], float]) -> ScoreMap:
        """The map of candidates that were measured."""
        lost: dict[float, list[float]] = {}
        for one in known:
            if one.summed > 0:
                lost.setdefault(one.summed, []).append(one.measured.loss.value)
        sums = sorted(lost)
        if not sums:
            return cls(sums=(0.0,), losses=(0.0,), start=start)
        found = isotonic_regression(
            [float(np.mean(lost[each])) for each in sums],
            weights=[len(lost[each]) for each in sums],
        )
        losses = np.maximum(found.x, 0.0).tolist()  # nothing is lost where nothing is changed
        return cls(sums=(0.0, *sums), losses=(0.0, *losses), start=start)

    def __call__(self, summed: float) -> float:
        """Percent of the score; beyond the last point it goes on in proportion."""
        last = self.sums[-1]
        if last == 0:
            return max(0.0, self.start(summed))
        if summed > last:
            return self.losses[-1] * summed / last
        return float(np.interp(summed, self.sums, self.losses))
