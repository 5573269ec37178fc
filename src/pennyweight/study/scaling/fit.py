"""What a scaling study found: reachable ratios, the laws with their intervals and held-out errors,
and the two phenomena of the paper, as they came out."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy.stats import kendalltau
from scipy.stats import t as student

from pennyweight.core import DataError
from pennyweight.study.planning.budget import Budget
from pennyweight.study.scaling.cells import CONFIDENCE, Cell, bands
from pennyweight.study.scaling.laws import (
    LARGEST_PERCENT,
    JointLaw,
    Points,
    Reach,
    SizeLaw,
    fit_block_law,
    fit_joint_law,
    fit_size_law,
    reachable,
)

GROUPS = re.compile(r"(_g\d+|_row|_tensor|_block)(?=_|$)")  # of a scheme's name
FINE, COARSE = "matmul", "layer"
Band = tuple[float, float] | None
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class Search:
    """Cells that one law is about."""

    metric: str
    format: str  # for the laws over block sizes without its groups
    granularity: str
    search: str
    statistic: str  # best or mean of the trials; the exact allocation is one trial

    @property
    def name(self) -> str:
        return f"{self.metric} {self.format} {self.granularity} {self.search} {self.statistic}"


@dataclass(frozen=True, kw_only=True)
class ReachRow:
    of: Search
    budget: str
    model: str
    size: int
    ratio: float
    at_least: bool
    over_trials: Band


@dataclass(frozen=True, kw_only=True)
class SizeRow:
    """The law of size. `gain` is what doubling the size adds to the reachable Q_r."""

    of: Search
    budget: str
    models: int  # whose reachable ratio is known, and not only a least value
    k: float | None
    c: float | None
    gain: float | None
    gain_over_trials: Band
    gain_over_models: Band  # Student's t, with the models as the sample
    heldout_error: float | None  # mean |error| of Q_r, each model predicted from the others
    kendall: float | None  # rank correlation of size and reachable ratio, over all models
    kendall_p: float | None


@dataclass(frozen=True, kw_only=True)
class BlockRow:
    of: Search
    model: str
    ratio: float  # asked for
    A: float
    k: float
    k_over_trials: Band
    r_squared: float
    points: int


@dataclass(frozen=True, kw_only=True)
class JointRow:
    of: Search
    law: JointLaw
    over_trials: dict[str, Band]
    heldout_factor: float | None  # exp(rms of ln(measured / predicted)), each model left out once


@dataclass(frozen=True, kw_only=True)
class GranularityRow:
    """Reachable Q_r with single matmuls as units, less that with whole layers."""

    of: Search  # granularity: matmul
    budget: str
    model: str
    difference: float
    at_least: bool  # the finer one reached all that was measured
    over_trials: Band


@dataclass(frozen=True, kw_only=True)
class Findings:
    reach: tuple[ReachRow, ...]
    size: tuple[SizeRow, ...]
    block: tuple[BlockRow, ...]
    joint: tuple[JointRow, ...]
    granularity: tuple[GranularityRow, ...]


def findings(cells: Sequence[Cell], budgets: Sequence[Budget]) -> Findings:
    """Everything that can be said of these cells."""
    reach, size, finer = [], [], []
    for budget in budgets:
        mine = [cell for cell in cells if cell.metric == budget.measured]
        for of, group in _searches(mine):
            if len({cell.asked for cell in group}) > 2:  # two points are no curve
                reach += list(_reach_rows(of, group, budget))
                size.append(_size_row(of, group, budget))
        finer += list(_granularity_rows(mine, budget))
    metrics = {budget.measured for budget in budgets}
    wanted = [cell for cell in cells if cell.metric in metrics]
    return Findings(
        reach=tuple(reach), size=tuple(size), granularity=tuple(finer),
        block=tuple(_block_rows(wanted)), joint=tuple(_joint_rows(wanted)),
    )  # fmt: skip


def without_groups(format: str) -> str:
    """`W4A16_fp4` of `W4A16_fp4_g64`: formats that differ in the block size alone."""
    return GROUPS.sub("", format)


def _grouped(items: Iterable[Cell], key: Callable[[Cell], Key]) -> dict[Key, list[Cell]]:
    found: dict[Key, list[Cell]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


def _searches(
    cells: Iterable[Cell], name: Callable[[str], str] = str
) -> Iterator[tuple[Search, list[Cell]]]:
    groups = _grouped(cells, lambda c: (c.metric, name(c.format), c.granularity, c.search))
    for (metric, format, granularity, search), group in groups.items():
        for statistic in ("best", "mean") if search == "random" else ("best",):
            yield Search(
                metric=metric, format=format, granularity=granularity, search=search,
                statistic=statistic,
            ), group  # fmt: skip


def reach_of(cells: Sequence[Cell], statistic: str, budget: float) -> Reach:
    """Of one model."""
    points = [cell.point(statistic) for cell in cells]
    return reachable([ratio for ratio, _ in points], [loss for _, loss in points], budget)


def _reach_rows(of: Search, group: Sequence[Cell], budget: Budget) -> Iterator[ReachRow]:
    for model, mine in _grouped(group, lambda cell: cell.model).items():
        found = reach_of(mine, of.statistic, budget.limit)
        moves = lambda cells: [reach_of(cells, of.statistic, budget.limit).ratio]
        yield ReachRow(
            of=of, budget=str(budget), model=model, size=mine[0].size, ratio=found.ratio,
            at_least=found.at_least, over_trials=bands(moves, mine, f"{of.name} {model}")[0],
        )  # fmt: skip


def reaches(group: Sequence[Cell], statistic: str, budget: float) -> list[tuple[int, Reach]]:
    """(size, reach) of every model."""
    models = _grouped(group, lambda cell: cell.model).values()
    return [(mine[0].size, reach_of(mine, statistic, budget)) for mine in models]


def size_law(group: Sequence[Cell], statistic: str, budget: float) -> SizeLaw:
    """Of the models whose reachable ratio is known. Raises DataError if that are not two."""
    known = [(n, r.ratio) for n, r in reaches(group, statistic, budget) if not r.at_least]
    return fit_size_law([float(n) for n, _ in known], [ratio for _, ratio in known])


def _size_row(of: Search, group: Sequence[Cell], budget: Budget) -> SizeRow:
    every = reaches(group, of.statistic, budget.limit)
    known = [(float(n), r.ratio) for n, r in every if not r.at_least]
    tau, p = _ranks([n for n, _ in every], [r.ratio for _, r in every])
    try:
        law = size_law(group, of.statistic, budget.limit)
    except DataError:  # too few models inside the measured ratios: the row says how many
        law = None
    gains = lambda cells: [-math.log(2) * size_law(cells, of.statistic, budget.limit).slope]
    return SizeRow(
        of=of, budget=str(budget), models=len(known),
        k=law and law.k, c=law and law.c, gain=law and -math.log(2) * law.slope,
        gain_over_trials=bands(gains, group, of.name)[0] if law else None,
        gain_over_models=_gain_band(law) if law else None,
        heldout_error=_size_heldout(known),
        kendall=tau, kendall_p=p,
    )  # fmt: skip


def _gain_band(law: SizeLaw) -> Band:
    if law.points < 3:
        return None
    half = student.ppf((1 + CONFIDENCE) / 2, law.points - 2) * law.deviation / law.squares**0.5
    return -math.log(2) * (law.slope + float(half)), -math.log(2) * (law.slope - float(half))


def _size_heldout(known: Sequence[tuple[float, float]]) -> float | None:
    if len(known) < 3:
        return None
    errors = []
    for index, (size, ratio) in enumerate(known):
        rest = [each for place, each in enumerate(known) if place != index]
        errors.append(abs(fit_size_law(*map(list, zip(*rest, strict=True))).ratio(size) - ratio))
    return float(np.mean(errors))


def _block_rows(cells: Sequence[Cell]) -> Iterator[BlockRow]:
    for of, family in _searches(cells, without_groups):
        groups = _grouped(family, lambda cell: (cell.model, cell.asked))
        for (model, asked), group in groups.items():
            if len({cell.block for cell in group}) < 3:
                continue
            largest = LARGEST_PERCENT
            if of.metric == "kl_nats":
                largest = math.log1p(LARGEST_PERCENT / 100)
            law_of = lambda cells, of=of, largest=largest: fit_block_law(
                [cell.block for cell in cells], [cell.point(of.statistic)[1] for cell in cells],
                largest,
            )  # fmt: skip
            try:
                law = law_of(group)
            except DataError:  # every loss is a collapse or below noise; there is no law to state
                continue
            (band,) = bands(lambda cells, fit=law_of: [fit(cells).k], group, f"{of.name} {model}")
            yield BlockRow(
                of=of, model=model, ratio=asked, A=law.A, k=law.k, k_over_trials=band,
                r_squared=law.r_squared, points=law.points,
            )  # fmt: skip


def points_of(cells: Sequence[Cell], statistic: str) -> Points:
    found = [cell.point(statistic) for cell in cells]
    return Points(
        sizes=np.array([float(cell.size) for cell in cells]),
        ratios=np.array([ratio for ratio, _ in found]),
        blocks=np.array([cell.block for cell in cells]),
        losses=np.array([loss for _, loss in found]),
    )


def _joint_rows(cells: Sequence[Cell]) -> Iterator[JointRow]:
    names = ("C", "a", "alpha", "gamma", "d")
    for of, family in _searches(cells, without_groups):
        if len({c.model for c in family}) < 3 or len({c.asked for c in family}) < 2:
            continue
        law = fit_joint_law(points_of(family, of.statistic))

        def constants(cells: Sequence[Cell], of=of, law=law) -> list[float]:
            found = fit_joint_law(points_of(cells, of.statistic), start=law)
            return [getattr(found, name) for name in names]

        found = bands(constants, family, of.name)
        yield JointRow(
            of=of, law=law, over_trials=dict(zip(names, found, strict=True)),
            heldout_factor=_joint_heldout(family, of.statistic),
        )  # fmt: skip


def _joint_heldout(family: Sequence[Cell], statistic: str) -> float | None:
    errors: list[float] = []
    for model in dict.fromkeys(cell.model for cell in family):
        rest = [cell for cell in family if cell.model != model]
        try:
            law = fit_joint_law(points_of(rest, statistic))
        except DataError:  # what is left does not determine a law
            return None
        for cell in family:
            ratio, loss = cell.point(statistic)
            if cell.model == model and loss > 0:
                errors.append(math.log(loss / law.loss(float(cell.size), ratio, cell.block)))
    return math.exp(math.sqrt(float(np.mean(np.square(errors)))))


def _granularity_rows(cells: Sequence[Cell], budget: Budget) -> Iterator[GranularityRow]:
    for of, group in _searches([c for c in cells if c.granularity == FINE]):
        for model, fine in _grouped(group, lambda cell: cell.model).items():
            coarse = [
                c for c in cells
                if (c.model, c.format, c.search, c.granularity)
                == (model, of.format, of.search, COARSE)
            ]  # fmt: skip
            if len({c.asked for c in coarse}) < 3 or len({c.asked for c in fine}) < 3:
                continue

            def difference(both: Sequence[Cell], of=of) -> list[float]:
                ends = [[c for c in both if c.granularity == side] for side in (FINE, COARSE)]
                one, other = (reach_of(end, of.statistic, budget.limit).ratio for end in ends)
                return [one - other]

            yield GranularityRow(
                of=of, budget=str(budget), model=model, difference=difference([*fine, *coarse])[0],
                at_least=reach_of(fine, of.statistic, budget.limit).at_least,
                over_trials=bands(difference, [*fine, *coarse], f"{of.name} {model} finer")[0],
            )  # fmt: skip


def _ranks(sizes: Sequence[int], ratios: Sequence[float]) -> tuple[float | None, float | None]:
    """Kendall's tau and its p; None where all ratios are equal or there is one model."""
    if len(set(sizes)) < 2 or len(set(ratios)) < 2:
        return None, None
    found = kendalltau(sizes, ratios)
    return float(found.statistic), float(found.pvalue)
