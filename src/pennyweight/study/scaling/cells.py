"""The trials of a scaling study as the laws see them, and how far these move with the trials."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from pennyweight.core import DataError
from pennyweight.core.record import Record

Statistic = Literal["best", "mean"]
SEARCHES = ("random", "exact")
RESAMPLES, CONFIDENCE = 200, 0.95
SAME = ("text", "sense", "seed", "quantizer")  # of a subject: what all trials must share


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One search: all its trials."""

    metric: str
    model: str
    size: int  # parameters of the model
    format: str
    block: float  # weights per scale
    granularity: str
    search: str
    asked: float  # the Q_r that was asked for
    ratios: tuple[float, ...]  # the Q_r that each trial has
    losses: tuple[float, ...]

    def point(self, statistic: str) -> tuple[float, float]:
        """(Q_r, loss) of the best trial, or the means over trials."""
        if statistic == "mean":
            return float(np.mean(self.ratios)), float(np.mean(self.losses))
        best = int(np.argmin(self.losses))
        return self.ratios[best], self.losses[best]

    def resampled(self, generator: np.random.Generator) -> Cell:
        """As many trials drawn from these with replacement. One trial stays what it is."""
        drawn = generator.integers(len(self.losses), size=len(self.losses))
        ratios, losses = (np.asarray(each)[drawn].tolist() for each in (self.ratios, self.losses))
        return replace(self, ratios=tuple(ratios), losses=tuple(losses))


def cells_of(records: Iterable[Record], where: str = "records") -> list[Cell]:
    """The searches in the records of a study, in the order of the records.

    Raises DataError if there are none, or if they are of several texts, seeds, quantizers or
    versions of one model, and so not to be compared.
    """
    found: dict[tuple, list[Record]] = {}
    for record in records:
        subject = record.subject
        if subject.get("search") in SEARCHES:
            key = (record.metric, subject["model"], subject["format"], subject["granularity"],
                   subject["search"], subject["ratio"])  # fmt: skip
            found.setdefault(key, []).append(record)
    if not found:
        raise DataError(f"{where}: holds no trials; `pennyweight study scaling` measures them")
    _same([record for each in found.values() for record in each], where)
    return [_cell(each) for each in found.values()]


def _cell(records: Sequence[Record]) -> Cell:
    subject, detail = records[0].subject, records[0].detail
    return Cell(
        metric=records[0].metric, model=subject["model"], size=detail["parameters"],
        format=subject["format"], block=detail["block_size"], granularity=subject["granularity"],
        search=subject["search"], asked=subject["ratio"],
        ratios=tuple(record.detail["quantization_ratio"] for record in records),
        losses=tuple(record.value for record in records),
    )  # fmt: skip


def _same(records: Sequence[Record], where: str) -> None:
    """All of one text, and so on; each model of one checkpoint."""
    for name in SAME:
        values = {str(r.subject[name]): None for r in records if name in r.subject}
        if len(values) > 1:
            raise DataError(
                f"{where}: trials of {len(values)} different values of {name!r} under one study "
                f"name, expected one: {' and '.join(list(values)[:2]):.160}; give the changed "
                "study another `name`"
            )
    prints: dict[Any, set[str]] = {}
    for record in records:
        prints.setdefault(record.subject["model"], set()).add(record.subject["fingerprint"])
    if several := next((model for model, found in prints.items() if len(found) > 1), None):
        raise DataError(
            f"{where}: {several}: trials of two different checkpoints; give the study another name"
        )


def bands(
    statistic: Callable[[Sequence[Cell]], Sequence[float]], cells: Sequence[Cell], name: str
) -> list[tuple[float, float] | None]:
    """The 95 % bootstrap interval of each number that `statistic` makes of the cells, with trials
    resampled inside each; None for all if no cell has more than one.

    It says how far a result moves with which mixes were drawn: not with the choice of models or of
    the text. That of a best of n is known to be too narrow, because resamples see no better trial.
    """
    if all(len(cell.losses) == 1 for cell in cells):
        return [None] * len(statistic(cells))
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    drawn = []
    for _ in range(RESAMPLES):
        try:
            drawn.append(list(statistic([cell.resampled(generator) for cell in cells])))
        except DataError:  # a resample that no law can be fitted to says nothing
            continue
    if len(drawn) < RESAMPLES / 2:
        return [None] * len(statistic(cells))
    ends = np.percentile(drawn, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)], axis=0)
    return [(float(low), float(high)) for low, high in ends.T]
