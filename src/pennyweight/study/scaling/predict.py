"""How far a model that was not measured can go, from the smaller members of its family."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from pennyweight.core import DataError, RecipeError
from pennyweight.study.planning.budget import Budget
from pennyweight.study.scaling.cells import CONFIDENCE, Cell
from pennyweight.study.scaling.fit import reaches, size_law
from pennyweight.study.scaling.laws import SizeLaw

SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?(?:e\d+)?)(?P<unit>[kmbt]?)", re.IGNORECASE)
UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
FEWEST = 3  # models: of two a line has no interval


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked, and of which searches of the study. None: the only one there is."""

    size: float  # parameters
    budget: Budget
    format: str | None = None
    granularity: str | None = None
    search: str | None = None
    statistic: str = "best"  # of random trials


@dataclass(frozen=True, kw_only=True)
class Member:
    """A model the answer is from."""

    model: str
    size: int
    ratio: float
    at_least: bool  # it stayed inside the budget wherever it was measured; not in the fit


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The reachable quantization ratio. Ratio and ends are cut to 0 .. 1."""

    size: float
    budget: str
    format: str
    granularity: str
    search: str
    statistic: str
    ratio: float
    low: float
    high: float
    confidence: float
    k: float  # of N = exp(k (1 - Q_r) + c), N in billions
    c: float
    times_largest: float  # the size over that of the largest model in the fit
    members: tuple[Member, ...]
    warnings: tuple[str, ...]


def parse_size(text: str) -> float:
    """Parameters of `70B`, `1.1M`, `7e9`. Raises RecipeError for anything else."""
    match = SIZE.fullmatch(text.strip())
    value = float(match["number"]) * UNITS[match["unit"].lower()] if match else 0.0
    if not (0 < value < math.inf):
        raise RecipeError(
            f"--size {text!r:.40}: expected a number of parameters, such as 70B or 1.1M"
        )
    return value


def predict(cells: Sequence[Cell], question: Question) -> Prediction:
    """The answer of the law of size, with its prediction interval.

    Raises RecipeError if the question fits several searches or none, DataError if fewer than three
    models cross the budget inside the ratios that were measured.
    """
    group = _asked(cells, question)
    limit, first = question.budget.limit, group[0]
    names = list(dict.fromkeys(cell.model for cell in group))
    members = tuple(
        Member(model=name, size=size, ratio=found.ratio, at_least=found.at_least)
        for name, (size, found) in zip(
            names, reaches(group, question.statistic, limit), strict=True
        )
    )
    known = [member for member in members if not member.at_least]
    if len({member.size for member in known}) < FEWEST:
        raise DataError(
            f"{len(known)} of {len(members)} models cross {question.budget} inside the ratios that "
            f"were measured; expected at least {FEWEST} of different sizes. Ask for another "
            "budget, or measure more models or ratios"
        )
    law = size_law(group, question.statistic, limit)
    low, high = law.interval(question.size, CONFIDENCE)
    largest = max(member.size for member in known)
    return Prediction(
        size=question.size, budget=str(question.budget), format=first.format,
        granularity=first.granularity, search=first.search, statistic=question.statistic,
        ratio=_cut(law.ratio(question.size)), low=_cut(low), high=_cut(high),
        confidence=CONFIDENCE, k=law.k, c=law.c, times_largest=question.size / largest,
        members=tuple(sorted(members, key=lambda member: member.size)),
        warnings=tuple(_warnings(law, question.size, members)),
    )  # fmt: skip


def _asked(cells: Sequence[Cell], question: Question) -> list[Cell]:
    """The cells of the one search that the question is about."""
    found = [cell for cell in cells if cell.metric == question.budget.measured]
    for name in ("format", "granularity", "search"):
        asked = getattr(question, name)
        known = list(dict.fromkeys(getattr(cell, name) for cell in found))
        if asked is None and len(known) > 1:
            raise RecipeError(f"the family has several values of {name}; name one: --{name} "
                              f"{' or '.join(known)}")  # fmt: skip
        if asked is not None and asked not in known:
            raise RecipeError(
                f"--{name} {asked!r:.40}: the family has {', '.join(known) or 'no trials'} here"
            )
        found = [cell for cell in found if asked in (None, getattr(cell, name))]
    if not found:
        raise RecipeError(f"the family has no trials with {question.budget.measured}")
    return found


def _warnings(law: SizeLaw, size: float, members: Sequence[Member]):
    known = [member.size for member in members if not member.at_least]
    if size > max(known):
        yield (
            f"outside the fitted range: {size / max(known):,.4g} times the largest model in the "
            "fit. The interval assumes that the law goes on; nothing measured here says so"
        )
    if size < min(known):
        yield (
            "outside the fitted range: the smallest model in the fit is "
            f"{min(known) / size:,.4g} times as large"
        )
    for member in members:
        if member.at_least:
            yield (
                f"{member.model} stayed inside the budget up to Q_r {member.ratio:.3g} and is not "
                "in the fit, which is the lower for it"
            )
    if law.slope >= 0:
        yield "in this family larger models did not tolerate a higher ratio"
    low, high = law.interval(size, CONFIDENCE)
    if low <= 0 and high >= 1:
        yield "the interval is everything from 0 to 1: these models do not tell"


def _cut(ratio: float) -> float:
    return min(max(ratio, 0.0), 1.0)
