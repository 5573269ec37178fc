"""How much a result depends on each axis of a study, and which differences are more than luck.

Luck is the seed: it draws the calibration samples. Two sets are compared seed by seed, and the
difference is called if flipping the signs of the seeds' differences at random rarely gives one as
large (Fisher's exact randomization test of pairs). Sample counts of one seed share samples, so they
are averaged and not counted as further pairs.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy.stats import false_discovery_control

from pennyweight.study.calibration.design import Cell

LEVEL = 0.05
EXACT_PAIRS, DRAWS = 16, 1 << 16  # all sign patterns up to so many pairs, else so many at random
AXES = ("set", "samples", "seed")


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One method on one set, over all sample counts and seeds."""

    method: str
    set: str
    mean: float
    deviation: float  # over seeds, pooled over the sample counts; nan of a single seed
    lowest: float
    highest: float


@dataclass(frozen=True, kw_only=True)
class AxisSpread:
    """How far apart the means along one axis are, the other axes averaged."""

    method: str
    axis: str
    deviation: float  # nan of a single value
    range: float
    lowest_at: str
    highest_at: str


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A set against the first one, under one method."""

    method: str
    set: str
    reference: str
    mean: float
    lowest: float  # of the seeds' differences
    highest: float
    p: float  # of a difference as large under exchangeable sets
    adjusted_p: float  # for the number of comparisons (Benjamini and Hochberg 1995)
    seeds: int

    @property
    def verdict(self) -> str:
        """Whether it is larger than the seed's."""
        if self.lowest == self.highest == 0:
            return "none: the method does not look at the data"
        if least_p(self.seeds) > LEVEL:
            return f"cannot be told from {self.seeds} seeds"
        if self.adjusted_p <= LEVEL:
            return "larger than the seed's"
        # With many comparisons few seeds cannot be enough, however far apart the sets are.
        return "larger, were it the only one" if self.p <= LEVEL else "within the seed's"


def summarize(values: Mapping[Cell, float]) -> list[Summary]:
    """A row for each method and set, in the order of the study."""
    rows = []
    for method, name in dict.fromkeys((cell.method, cell.set) for cell in values):
        mine = {c: v for c, v in values.items() if (c.method, c.set) == (method, name)}
        rows.append(Summary(
            method=method, set=name, mean=statistics.fmean(mine.values()),
            deviation=seed_deviation(mine),
            lowest=min(mine.values()), highest=max(mine.values()),
        ))  # fmt: skip
    return rows


def seed_deviation(values: Mapping[Cell, float]) -> float:
    """The standard deviation over seeds with all else equal: root of the mean variance."""
    groups: dict[tuple, list[float]] = {}
    for cell, value in values.items():
        groups.setdefault((cell.method, cell.set, cell.samples), []).append(value)
    if any(len(group) < 2 for group in groups.values()):
        return float("nan")
    return statistics.fmean(statistics.variance(group) for group in groups.values()) ** 0.5


def spreads(values: Mapping[Cell, float]) -> list[AxisSpread]:
    """A row for each method and axis."""
    rows = []
    for method, axis in itertools.product(_methods(values), AXES):
        means = {
            level: statistics.fmean(
                v for c, v in values.items() if c.method == method and getattr(c, axis) == level
            )
            for level in dict.fromkeys(getattr(c, axis) for c in values)
        }
        low, high = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
        deviation = statistics.stdev(means.values()) if len(means) > 1 else float("nan")
        rows.append(AxisSpread(
            method=method, axis=axis, deviation=deviation, range=means[high] - means[low],
            lowest_at=str(low), highest_at=str(high),
        ))  # fmt: skip
    return rows


def differences(values: Mapping[Cell, float]) -> list[Difference]:
    """Every set against the first, under each method; p adjusted over all of them."""
    sets = list(dict.fromkeys(cell.set for cell in values))
    found = []
    for method, name in itertools.product(_methods(values), sets[1:]):
        pairs = _paired(values, method, name, sets[0])
        found.append((method, name, pairs, sign_flip_p(pairs)))
    adjusted = false_discovery_control([p for *_, p in found]) if found else []
    return [
        Difference(
            method=method, set=name, reference=sets[0], mean=statistics.fmean(pairs),
            lowest=min(pairs), highest=max(pairs), p=p, adjusted_p=float(q), seeds=len(pairs),
        )
        for (method, name, pairs, p), q in zip(found, adjusted, strict=True)
    ]  # fmt: skip


def _methods(values: Iterable[Cell]) -> list[str]:
    return list(dict.fromkeys(cell.method for cell in values))


def _paired(values: Mapping[Cell, float], method: str, name: str, reference: str) -> list[float]:
    """Of each seed, the set's value less the reference's, averaged over sample counts."""
    by_seed: dict[int, list[float]] = {}
    for cell, value in values.items():
        if cell.method == method and cell.set == name:
            other = Cell(method=method, set=reference, samples=cell.samples, seed=cell.seed)
            by_seed.setdefault(cell.seed, []).append(value - values[other])
    return [statistics.fmean(each) for each in by_seed.values()]


def sign_flip_p(pairs: Sequence[float]) -> float:
    """How often random signs give a mean at least as far from 0 as these differences have.

    Exact up to EXACT_PAIRS pairs; beyond that of DRAWS patterns drawn with seed 0, the observed one
    counted in.
    """
    x = torch.tensor(pairs, dtype=torch.float64)
    if len(x) <= EXACT_PAIRS:
        patterns = torch.tensor(list(itertools.product((1.0, -1.0), repeat=len(x))))
    else:
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randint(2, (DRAWS, len(x)), generator=generator)
        patterns = torch.cat([torch.ones(1, len(x)), 2.0 * drawn - 1])
    means, observed = (patterns.double() @ x).abs(), x.sum().abs()
    # Patterns that give the same sum do so only up to rounding.
    return (means >= observed * (1 - 1e-12)).double().mean().item()


def least_p(seeds: int) -> float:
    """The smallest p that so many pairs can give."""
    return 2.0 ** (1 - seeds)
