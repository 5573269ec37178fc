"""One line about a comparison: may the model replace its reference?"""

from __future__ import annotations

import math
from enum import StrEnum

from pennyweight.core.errors import DataError
from pennyweight.evaluate.intervals import Interval

DEFAULT_BUDGET_PERCENT = 1.0  # of the reference's score; a recovery of 99 % is the usual aim


class Verdict(StrEnum):
    """What an interval of the loss lets one say."""

    LOSSLESS = "lossless within noise"
    WITHIN = "within budget"
    OVER = "not within budget"
    UNDECIDED = "undecided"
    CHANCE = "none: reference at chance"


def verdict(
    recovery_percent: Interval, *, budget_percent: float, floor_percent: float = 0.0
) -> Verdict:
    """Judge 100 - recovery, the loss in percent, by its 95 % interval.

    LOSSLESS: it holds zero, or what the reference loses against itself (`floor_percent`), or less,
    and nothing over the budget. WITHIN: there is a loss, and it is inside the budget. OVER: all
    of the interval is over the budget. UNDECIDED: some is and some is not; more items would tell.

    At zero difference the interval misses zero in 5 % of all cases, half of them as a gain; so a
    loss is claimed (WITHIN or OVER) in 2.5 %.
    """
    if not budget_percent >= 0 or not floor_percent >= 0:
        raise DataError(
            f"a budget of {budget_percent} % and a noise floor of {floor_percent} %; expected "
            "numbers from 0"
        )
    if math.isnan(recovery_percent.low) or math.isnan(recovery_percent.high):
        return Verdict.UNDECIDED
    least, most = 100 - recovery_percent.high, 100 - recovery_percent.low
    budget = max(budget_percent, floor_percent)  # nobody can ask for less than noise
    if least > budget:
        return Verdict.OVER
    if most > budget:
        return Verdict.UNDECIDED
    return Verdict.LOSSLESS if least <= floor_percent else Verdict.WITHIN
