"""A choice of schemes with its figures: what it should lose, what it lost, and what it takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pennyweight.allocate.base import Assignment
from pennyweight.evaluate import Interval
from pennyweight.formats.schemes import UNTOUCHED
from pennyweight.study.planning.costs import LOW_BITS, code_bits, is_low
from pennyweight.study.sensitivity.table import Sensitivity


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What an assignment takes. Considered are the parameters of all units, whatever they get."""

    size_bytes: float  # everything stored for the units
    bits_per_weight: float  # the same per parameter
    quantization_ratio: float  # parameters of at most `LOW_BITS` bits over all (paper: Q_r)
    # The same where what is stored besides codes counts as parameters of 16 bits in high precision.
    quantization_ratio_with_scales: float


def figures(schemes: Assignment, table: Sensitivity, low_bits: int = LOW_BITS) -> Figures:
    """schemes: of every unit of the table."""
    stored = low = total = 0
    beside = 0.0
    for unit in table.units:
        scheme = schemes[unit.name]
        bits, count = unit.options[scheme].stored_bits, unit.parameters
        stored, total = stored + bits, total + count
        low += count if is_low(scheme, low_bits) else 0
        if scheme != UNTOUCHED:
            beside += (bits - code_bits(scheme) * count) / 16
    return Figures(
        size_bytes=stored / 8, bits_per_weight=stored / total, quantization_ratio=low / total,
        quantization_ratio_with_scales=low / (total + beside),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a built candidate lost, on text that the search has not seen."""

    loss: Interval  # in the metric of the budget
    kl_nats: Interval
    perplexity_change_percent: Interval
    recovery_percent: Interval | None = None  # of the budget's tasks, if it has some
    file_bytes: int  # of the checkpoint that was made
    plan: str = ""  # digest of the plan that was carried out
    data: str = ""  # digest of the tokens
    tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One plan that was considered."""

    schemes: Assignment
    summed: float  # the losses of its units added up, in nats
    predicted: float  # the same times the correction at that time, in the metric of the budget
    cost: float
    figures: Figures
    measured: Measured
    inside: bool  # the upper end of the loss is within the budget

    def to_dict(self) -> dict[str, Any]:
        return _plain(asdict(self))


def summed_loss(schemes: Mapping[str, str], table: Sensitivity) -> float:
    """The additive model."""
    return math.fsum(unit.options[schemes[unit.name]].value for unit in table.units)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
