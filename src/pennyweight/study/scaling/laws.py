"""The scaling laws of mixed quantization, fitted to measured points.

    size    N = exp(k (1 - Q_r) + c)                   N in billions, Q_r reachable in a budget
    block   loss = A Q_b^k                             Q_b weights per scale
    joint   loss = C exp(a Q_r) N^-alpha (Q_b^gamma + d)

The first two are of Scaling Laws for Mixed Quantization, https://arxiv.org/abs/2410.06722, v1. Of
the third, v2 and v3 of that paper say that there is one; its form here is from our notes and has
medium confidence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import isotonic_regression, least_squares
from scipy.stats import t as student

from pennyweight.core import DataError

BILLION = 1e9
LARGEST_PERCENT = 100.0  # the paper leaves larger losses out of the block law: those are collapses
GAMMA = (0.0, 5.0)  # bounds of the joint law; its error grows with the block
LOG_ONE_PLUS_D = (math.log(0.01), math.log(1e4))
STARTS = ((0.3, 0.0), (1.0, 0.0), (0.5, 2.0), (0.1, -2.0))  # (gamma, ln(1 + d))


@dataclass(frozen=True, kw_only=True)
class Reach:
    """The largest share in low precision inside a budget."""

    ratio: float
    at_least: bool  # nothing measured was outside the budget: the share may be larger


def reachable(ratios: Sequence[float], losses: Sequence[float], budget: float) -> Reach:
    """Where the loss crosses the budget, between two measured ratios on a straight line.

    The curve starts at no loss without low precision. Losses are first made to rise with the ratio
    (isotonic regression), because single ones are noisy.
    """
    order = np.argsort(ratios, kind="stable")
    x = np.concatenate([[0.0], np.asarray(ratios, float)[order]])
    y = np.asarray(losses, float)[order]
    if (np.diff(y) < 0).any():
        y = isotonic_regression(y).x
    y = np.concatenate([[0.0], np.maximum(y, 0.0)])
    above = np.flatnonzero(y > budget)
    if not len(above):
        return Reach(ratio=float(x[-1]), at_least=True)
    after = above[0]
    before = after - 1
    step = (budget - y[before]) / (y[after] - y[before])
    return Reach(ratio=float(x[before] + step * (x[after] - x[before])), at_least=False)


@dataclass(frozen=True, kw_only=True)
class SizeLaw:
    """1 - Q_r = slope ln N + intercept, with what its prediction interval takes.

    Sizes are exact and ratios are measured, so that the share is regressed on the size; the paper
    writes the same line as N = exp(k (1 - Q_r) + c).
    """

    slope: float
    intercept: float
    deviation: float  # of the points around the line, with n - 2 degrees of freedom
    points: int
    mean_log_size: float
    squares: float  # sum of squared distances of ln N from its mean

    @property
    def k(self) -> float:
        """Negative if larger models tolerate more; infinite if size makes no difference."""
        return 1 / self.slope if self.slope else math.inf

    @property
    def c(self) -> float:
        return -self.intercept / self.slope if self.slope else math.inf

    def ratio(self, size: float) -> float:
        """The reachable Q_r of `size` parameters; outside 0 .. 1 where the line leads there."""
        return 1 - (self.slope * math.log(size / BILLION) + self.intercept)

    def interval(self, size: float, confidence: float = 0.95) -> tuple[float, float]:
        """Where the ratio of a further model of this size should lie: uncertainty of the line, and
        the scatter of the models around it (Student's t). Not cut to 0 .. 1.

        All of the line if there are only two models.
        """
        if self.points < 3:
            return -math.inf, math.inf
        distance = math.log(size / BILLION) - self.mean_log_size
        spread = math.sqrt(1 + 1 / self.points + distance**2 / self.squares)
        half = float(student.ppf((1 + confidence) / 2, self.points - 2)) * self.deviation * spread
        return self.ratio(size) - half, self.ratio(size) + half


def fit_size_law(sizes: Sequence[float], ratios: Sequence[float]) -> SizeLaw:
    """Least squares of the reachable ratios; sizes in parameters.

    Raises DataError for fewer than two sizes.
    """
    x, y = np.log(np.asarray(sizes, float) / BILLION), 1 - np.asarray(ratios, float)
    if len(set(sizes)) < 2:
        raise DataError(f"the law of size has {len(set(sizes))} sizes; expected at least 2")
    squares = float(((x - x.mean()) ** 2).sum())
    slope = float(((x - x.mean()) * (y - y.mean())).sum()) / squares
    intercept = float(y.mean() - slope * x.mean())
    rest = y - slope * x - intercept
    free = len(x) - 2
    return SizeLaw(
        slope=slope, intercept=intercept, points=len(x), mean_log_size=float(x.mean()),
        squares=squares, deviation=math.sqrt(float(rest @ rest) / free) if free else math.nan,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class BlockLaw:
    """loss = A Q_b^k."""

    A: float
    k: float
    points: int
    r_squared: float  # of the logarithms; nan where these are all equal

    def loss(self, block: float) -> float:
        return self.A * block**self.k


def fit_block_law(
    blocks: Sequence[float], losses: Sequence[float], largest: float = LARGEST_PERCENT
) -> BlockLaw:
    """Least squares of logarithms, over the losses above 0 and below `largest`.

    Raises DataError if these are of fewer than two block sizes.
    """
    b, y = np.asarray(blocks, float), np.asarray(losses, float)
    kept = (y > 0) & (y < largest)
    if len(set(b[kept])) < 2:
        raise DataError(
            f"the law of block sizes has losses between 0 and {largest:g} for {len(set(b[kept]))} "
            "block sizes; expected at least 2"
        )
    x, y = np.log(b[kept]), np.log(y[kept])
    k = float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
    rest, total = y - y.mean() - k * (x - x.mean()), float(((y - y.mean()) ** 2).sum())
    return BlockLaw(
        A=float(math.exp(y.mean() - k * x.mean())), k=k, points=len(x),
        r_squared=1 - float(rest @ rest) / total if total else math.nan,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class JointLaw:
    """loss = C exp(a Q_r) N^-alpha (Q_b^gamma + d), N in billions.

    Of a single block size gamma and d are 0, of two d is 0: the points do not say more.
    """

    C: float
    a: float
    alpha: float
    gamma: float
    d: float
    points: int
    deviation: float  # root mean square of ln(measured / fitted)

    def loss(self, size: float, ratio: float, block: float) -> float:
        return (
            self.C
            * math.exp(self.a * ratio)
            * (size / BILLION) ** -self.alpha
            * (block**self.gamma + self.d)
        )

    def ratio(self, size: float, block: float, budget: float) -> float:
        """The Q_r at which the loss is the budget; outside 0 .. 1 where that is."""
        return math.log(budget / self.loss(size, 0.0, block)) / self.a


@dataclass(frozen=True, kw_only=True)
class Points:
    """What the joint law is fitted to: one entry for each search."""

    sizes: np.ndarray  # [points] parameters
    ratios: np.ndarray  # [points] Q_r
    blocks: np.ndarray  # [points] weights per scale
    losses: np.ndarray  # [points] those of 0 or less are left out

    def above_zero(self) -> Points:
        kept = self.losses > 0
        return Points(
            sizes=self.sizes[kept], ratios=self.ratios[kept], blocks=self.blocks[kept],
            losses=self.losses[kept],
        )  # fmt: skip


def fit_joint_law(points: Points, start: JointLaw | None = None) -> JointLaw:
    """Least squares of logarithms. C, a and alpha are linear there and are solved for exactly; only
    gamma and d are searched, from several starts or from one known law.

    Raises DataError if the points do not hold two sizes and two ratios.
    """
    points = points.above_zero()
    logs = np.log(points.losses)
    design = np.stack([
        np.ones_like(logs), points.ratios, -np.log(points.sizes / BILLION),
    ], axis=1)  # fmt: skip
    if len(logs) < 3 or np.linalg.matrix_rank(design) < 3:
        raise DataError(
            f"the joint law has {len(logs)} points with a loss above 0; expected two or more model "
            "sizes and quantization ratios"
        )
    count = len(np.unique(points.blocks))

    def solved(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        target = logs - _log_block(points.blocks, theta)
        linear = np.linalg.lstsq(design, target, rcond=None)[0]
        return linear, target - design @ linear

    theta = _search(lambda theta: solved(theta)[1], min(count, 3) - 1, start)
    linear, rest = solved(theta)
    gamma, d = _constants(theta)
    return JointLaw(
        C=math.exp(linear[0]), a=float(linear[1]), alpha=float(linear[2]), gamma=gamma, d=d,
        points=len(logs), deviation=math.sqrt(float(rest @ rest) / len(rest)),
    )  # fmt: skip


def _search(residuals, free: int, start: JointLaw | None) -> np.ndarray:
    """The best (gamma, ln(1 + d)), of which the first `free` are searched."""
    if free == 0:
        return np.zeros(0)
    known = ((start.gamma, math.log1p(start.d)),) if start else STARTS
    low, high = np.array([GAMMA, LOG_ONE_PLUS_D]).T[:, :free]
    inside = [np.clip(each[:free], low + 1e-6, high - 1e-6) for each in known]
    found = [
        least_squares(residuals, each, bounds=(low, high), xtol=1e-12, ftol=1e-12, gtol=1e-12)
        for each in inside
    ]
    return min(found, key=lambda one: one.cost).x


def _constants(theta: np.ndarray) -> tuple[float, float]:
    """(gamma, d)."""
    gamma = float(theta[0]) if len(theta) > 0 else 0.0
    return gamma, math.expm1(theta[1]) if len(theta) > 1 else 0.0


def _log_block(blocks: np.ndarray, theta: np.ndarray) -> np.ndarray:
    gamma, d = _constants(theta)
    return np.log(blocks**gamma + d)
