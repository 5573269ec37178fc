"""How much of the reference's score a model keeps, task by task and on average.

    recovery = 100 * score of the model / score of the reference, in percent

as in "Give Me BF16 or Give Me Death?" (arXiv:2411.02355, section 3). The items are a sample of the
questions one might have asked, both models answer the same ones, and the interval is paired: an
item on which both do the same says nothing about their difference.

Right and wrong answers fall into four cells: both right, only the model, only the reference, none.
Drawing items with replacement breaks down when few items are in the two middle cells: with none
of 50 the interval is a point, and at 100 items of which 3 % differ it held the truth in 82 % of
trials. So the cells' shares are drawn from their posterior distribution instead (the Bayesian
bootstrap, Rubin 1981) with three quarters of an item added to each middle cell. Over 50 to 1,000
items, 1 to 20 % differing, that held the truth in 94 to 100 % of trials, and in 94 to 97 where ten
items or more differ (tests/evaluate/test_recovery.py). Half an item was too narrow by a percent.

Scores that are not right or wrong are resampled item by item.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from scipy import stats

from pennyweight.core.errors import DataError
from pennyweight.evaluate.intervals import (
    CONFIDENCE,
    RESAMPLES,
    Interval,
    bootstrap_ratios,
    expanded_level,
    wilson_percent,
)
from pennyweight.evaluate.outcomes import TaskScores
from pennyweight.evaluate.verdict import DEFAULT_BUDGET_PERCENT, Verdict, verdict

PSEUDO_ITEMS = 0.75  # in each cell of disagreement; see above
CHUNK_ELEMENTS = 1 << 22  # of resampling weights at a time; the generator runs on through chunks


@dataclass(frozen=True, kw_only=True)
class Judging:
    """How intervals are made and what is asked of them."""

    budget_percent: float = DEFAULT_BUDGET_PERCENT  # of loss
    keep_chance: bool = False  # average also over tasks where the reference is at chance
    seed: int = 0
    resamples: int = RESAMPLES


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """One task under both models. Scores in percent."""

    task: str
    metric: str
    items: int
    score: Interval
    reference: Interval
    recovery_percent: Interval  # paired
    only_reference: int | None  # items that only the reference has right; None: not right or wrong
    only_model: int | None
    p_value: float | None  # McNemar's exact test that the two counts before are equally likely
    chance: float | None  # score of guessing; None: unknown
    above_chance: bool  # the reference is, beyond its interval; if not, recovery means nothing
    floor_percent: float  # what the reference loses or gains against itself
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class Average:
    """The mean score over tasks, each counting the same."""

    tasks: tuple[str, ...]
    left_out: tuple[str, ...]  # at chance
    score: Interval
    reference: Interval
    recovery_percent: Interval
    floor_percent: float
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class Recoveries:
    """All tasks, and their average where one of them is above chance."""

    tasks: tuple[Recovery, ...]
    average: Average | None
    judging: Judging
    confidence: float = CONFIDENCE


@dataclass(frozen=True, kw_only=True)
class _Draws:
    """Mean scores of both models in every draw; the same draw for both."""

    model: Float64[np.ndarray, " draws"]
    reference: Float64[np.ndarray, " draws"]
    level: float  # the lower quantile of an interval

    def interval(self, values: Float64[np.ndarray, " draws"], value: float) -> Interval:
        if not np.isfinite(values).all():
            return Interval(low=math.nan, value=value, high=math.nan)
        low, high = np.quantile(values, [self.level, 1 - self.level]).tolist()
        return Interval(low=low, value=value, high=high)


def recoveries(
    scores: Sequence[TaskScores],
    reference: Sequence[TaskScores],
    *,
    again: Sequence[TaskScores] = (),
    judging: Judging | None = None,
) -> Recoveries:
    """Compare two models on the same tasks; `again` is the reference once more, for the noise.

    Raises DataError if tasks, metrics or items differ.
    """
    judging = judging or Judging()
    floors = {each.task: each for each in again}
    pairs = [_pair(each, reference) for each in scores]
    draws = [_draws(m, r, judging) for m, r in pairs]
    found = tuple(
        _recovery(m, r, d, _floor([(floors[r.task], r)] if r.task in floors else []), judging)
        for (m, r), d in zip(pairs, draws, strict=True)
    )
    kept = [number for number, each in enumerate(found) if each.above_chance or judging.keep_chance]
    return Recoveries(
        tasks=found,
        average=_average([(*pairs[i], draws[i]) for i in kept], found, floors, judging)
        if kept
        else None,
        judging=judging,
    )


def score_interval(scores: TaskScores, judging: Judging | None = None) -> Interval:
    """A mean score in percent: Wilson's interval of a share, or bootstrap over items."""
    judging = judging or Judging()
    values, count = scores.values, len(scores.values)
    if scores.binary:
        return wilson_percent(round(sum(values)), count)
    column = torch.tensor([values], dtype=torch.float64)
    (found,) = bootstrap_ratios(
        100 * column, torch.ones_like(column), seed=judging.seed, resamples=judging.resamples
    )
    return found


def mcnemar(only_model: int, only_reference: int) -> float:
    """The exact two-sided p-value that both kinds of disagreement are equally likely."""
    fewer, count = min(only_model, only_reference), only_model + only_reference
    return min(1.0, 2 * float(stats.binom.cdf(fewer, count, 0.5)))


def _pair(scores: TaskScores, reference: Sequence[TaskScores]) -> tuple[TaskScores, TaskScores]:
    other = next((each for each in reference if each.task == scores.task), None)
    if other is None:
        raise DataError(f"{scores.task}: the reference was not asked; run the task for both models")
    if (scores.metric, scores.items, len(scores.values)) != (
        other.metric,
        other.items,
        len(other.values),
    ):
        raise DataError(
            f"{scores.task}: the models were asked different things ({len(scores.values)} items "
            f"by {scores.metric}, {len(other.values)} by {other.metric}); run both again"
        )
    if not scores.values:
        raise DataError(f"{scores.task}: there are no items")
    return scores, other


def _draws(model: TaskScores, reference: TaskScores, judging: Judging) -> _Draws:
    """Draws of a task depend on the seed and its name, not on the other tasks."""
    digest = hashlib.sha256(f"{judging.seed}:{model.task}".encode()).digest()
    generator = np.random.default_rng(int.from_bytes(digest[:8]))
    pair = np.array([model.values, reference.values], dtype=np.float64)
    if model.binary and reference.binary:
        weights = [
            _count(pair, 1, 1), _count(pair, 1, 0) + PSEUDO_ITEMS,
            _count(pair, 0, 1) + PSEUDO_ITEMS, _count(pair, 0, 0),
        ]  # fmt: skip
        shares = generator.standard_gamma(weights, size=(judging.resamples, 4))
        both, only_model, only_reference, neither = shares.T
        total = both + only_model + only_reference + neither
        return _Draws(
            model=(both + only_model) / total,
            reference=(both + only_reference) / total,
            level=(1 - CONFIDENCE) / 2,
        )
    means = _resampled(pair, generator, judging.resamples)
    count = pair.shape[1]
    level = expanded_level(count, CONFIDENCE) if count > 1 else 0.0
    return _Draws(model=means[0], reference=means[1], level=level)


def _resampled(
    pair: Float64[np.ndarray, "2 items"], generator: np.random.Generator, resamples: int
) -> Float64[np.ndarray, "2 resamples"]:
    count = pair.shape[1]
    rows = max(1, CHUNK_ELEMENTS // count)
    parts = []
    for start in range(0, resamples, rows):
        drawn = generator.integers(count, size=(min(rows, resamples - start), count))
        parts.append(pair[:, drawn].mean(-1))
    return np.concatenate(parts, 1)


def _count(pair: Float64[np.ndarray, "2 items"], model: int, reference: int) -> int:
    return int(((pair[0] == model) & (pair[1] == reference)).sum())


def _recovery(
    model: TaskScores, reference: TaskScores, draws: _Draws, floor: float, judging: Judging
) -> Recovery:
    percent = _ratio_percent(draws, _mean(model), _mean(reference))
    referred = score_interval(reference, judging)
    above = reference.chance is None or referred.low > 100 * reference.chance
    only_model = only_reference = p_value = None
    if model.binary and reference.binary:
        pairs = list(zip(model.values, reference.values, strict=True))
        only_model, only_reference = pairs.count((1.0, 0.0)), pairs.count((0.0, 1.0))
        p_value = mcnemar(only_model, only_reference)
    return Recovery(
        task=model.task,
        metric=model.metric,
        items=len(model.values),
        score=score_interval(model, judging),
        reference=referred,
        recovery_percent=percent,
        only_reference=only_reference,
        only_model=only_model,
        p_value=p_value,
        chance=reference.chance,
        above_chance=above,
        floor_percent=floor,
        verdict=_judged(percent, floor, judging) if above else Verdict.CHANCE,
    )


def _average(
    kept: Sequence[tuple[TaskScores, TaskScores, _Draws]],
    found: Sequence[Recovery],
    floors: Mapping[str, TaskScores],
    judging: Judging,
) -> Average:
    names = tuple(model.task for model, _, _ in kept)
    both = _Draws(
        model=np.mean([draws.model for *_, draws in kept], axis=0),
        reference=np.mean([draws.reference for *_, draws in kept], axis=0),
        level=min(draws.level for *_, draws in kept),
    )
    score = sum(_mean(model) for model, *_ in kept) / len(kept)
    referred = sum(_mean(reference) for _, reference, _ in kept) / len(kept)
    percent = _ratio_percent(both, score, referred)
    floor = _floor([(floors[r.task], r) for _, r, _ in kept if r.task in floors])
    return Average(
        tasks=names,
        left_out=tuple(each.task for each in found if each.task not in names),
        score=both.interval(100 * both.model, 100 * score),
        reference=both.interval(100 * both.reference, 100 * referred),
        recovery_percent=percent,
        floor_percent=floor,
        verdict=_judged(percent, floor, judging),
    )


def _judged(percent: Interval, floor: float, judging: Judging) -> Verdict:
    return verdict(percent, budget_percent=judging.budget_percent, floor_percent=floor)


def _floor(pairs: Sequence[tuple[TaskScores, TaskScores]]) -> float:
    """How far the reference is from itself, in percent; 0 if it ran once."""
    for again, reference in pairs:
        _pair(again, [reference])
    referred = sum(_mean(reference) for _, reference in pairs)
    if not referred:
        return 0.0
    return abs(100 - 100 * sum(_mean(again) for again, _ in pairs) / referred)


def _ratio_percent(draws: _Draws, model: float, reference: float) -> Interval:
    """Unknown where the reference has nothing right: there is nothing to keep."""
    if not reference:
        return Interval(low=math.nan, value=math.nan, high=math.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = 100 * draws.model / draws.reference
    return draws.interval(values, 100 * model / reference)


def _mean(scores: TaskScores) -> float:
    return sum(scores.values) / len(scores.values)
