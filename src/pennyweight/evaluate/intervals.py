"""How sure a ratio of sums is: the paired bootstrap over documents.

A perplexity is exp(sum of nll / sum of tokens), and its documents are a sample of the texts one
might have taken. Documents are drawn with replacement, and every statistic is computed from the
same draws, so that a difference between two models on the same documents is paired: what a hard
document adds to both cancels.

The percentile bootstrap is too narrow for few documents, by about sqrt((n - 1) / n) and by the
difference between a normal and a t distribution. `expanded_level` corrects both: Hesterberg 2014,
"What Teachers Should Know about the Bootstrap", https://arxiv.org/abs/1411.5279, expanded
percentile intervals.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import torch
from jaxtyping import Float64
from torch import Tensor

RESAMPLES = 2000
CONFIDENCE = 0.95

# 32 MiB of resampling weights at a time; a chunk continues the generator, so results do not change.
CHUNK_ELEMENTS = 1 << 22


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value and the interval around it; low and high are nan if there is nothing to resample."""

    low: float
    value: float
    high: float

    def map(self, function: Callable[[float], float]) -> Interval:
        """The interval of an increasing function of the value."""
        low, value, high = (function(x) for x in (self.low, self.value, self.high))
        return Interval(low=low, value=value, high=high)


def wilson_percent(count: int, total: int, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's interval of a share, in percent. Unlike a bootstrap's it is no point at 0 and 100 %.

    Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = count / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(share * (1 - share) / total + (z / (2 * total)) ** 2) / (1 + z * z / total)
    low = 0.0 if count == 0 else 100 * (middle - half)  # exactly, and not but for rounding
    high = 100.0 if count == total else 100 * (middle + half)
    return Interval(low=low, value=100 * share, high=high)


def bootstrap_ratios(
    numerators: Float64[Tensor, "statistics units"],
    denominators: Float64[Tensor, "statistics units"],
    *,
    seed: int,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> list[Interval]:
    """The interval of sum(numerator) / sum(denominator) over units, for each statistic.

    One unit cannot be resampled: low and high are then nan.
    """
    values = (numerators.sum(1) / denominators.sum(1)).tolist()
    units = numerators.shape[1]
    if units < 2:
        return [Interval(low=math.nan, value=value, high=math.nan) for value in values]
    level = expanded_level(units, confidence)
    draws = _resampled(numerators, denominators, seed, resamples)
    low, high = torch.quantile(draws, torch.tensor([level, 1 - level]).double(), dim=1).tolist()
    return [
        Interval(low=a, value=value, high=b) for a, value, b in zip(low, values, high, strict=True)
    ]


def expanded_level(units: int, confidence: float) -> float:
    """The lower quantile to take, below (1 - confidence) / 2 by as much as few units demand."""
    widened = math.sqrt(units / (units - 1)) * student_quantile((1 - confidence) / 2, units - 1)
    return NormalDist().cdf(widened)


def student_quantile(level: float, freedom: int) -> float:
    """The quantile of Student's t distribution by its expansion around the normal one.

    Abramowitz and Stegun 26.7.5. At 0.025 it is right to 0.2 % from 3 degrees of freedom on. For 1
    and 2 it is too small, but there the widened interval is all that the resamples span anyway.
    """
    x = NormalDist().inv_cdf(level)
    terms = (
        x,
        (x**3 + x) / 4,
        (5 * x**5 + 16 * x**3 + 3 * x) / 96,
        (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384,
        (79 * x**9 + 776 * x**7 + 1482 * x**5 - 1920 * x**3 - 945 * x) / 92160,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))


def _resampled(
    numerators: Tensor, denominators: Tensor, seed: int, resamples: int
) -> Float64[Tensor, "statistics resamples"]:
    generator = torch.Generator().manual_seed(seed)
    units = numerators.shape[1]
    rows = max(1, CHUNK_ELEMENTS // units)
    parts = []
    for start in range(0, resamples, rows):
        shape = (min(rows, resamples - start), units)
        drawn = torch.randint(units, shape, generator=generator)
        weights = torch.zeros(shape, dtype=torch.float64)
        weights.scatter_add_(1, drawn, torch.ones(shape, dtype=torch.float64))
        parts.append((numerators @ weights.T) / (denominators @ weights.T))
    return torch.cat(parts, 1)
