"""Carry out one task on the weight it is about: choose what to keep, round in slices, finish."""

from __future__ import annotations

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from pennyweight.core import Format, Mapper, Quantized, Stats
from pennyweight.quantize.base import Finishes, Prepares, Quantizer, Selects

ROWS = 1024  # output rows solved per task


def solve(
    quantizer: Quantizer,
    weight: Float[Tensor, "out in"],
    format: Format,
    stats: Stats,
    workers: Mapper,
) -> Quantized:
    """The quantized weight, from all threads; how it is cut depends on shapes alone.

    What `stats` already says to keep is not chosen again.
    """
    if isinstance(quantizer, Selects) and stats.keep is None:
        keep = quantizer.select(weight, format, stats, workers)
        stats = replace(stats, keep=keep)
    if isinstance(quantizer, Prepares):
        quantizer.prepare(stats, workers)
    rows = ROWS if format.rows_independent else len(weight)

    def part(start: int) -> Quantized:
        return quantizer(weight[start : start + rows], format, stats.rows(start, start + rows))

    first, *others = workers.map(part, range(0, len(weight), rows))
    quantized = first.join(others) if others else first
    if isinstance(quantizer, Finishes):
        quantized = quantizer.finish(weight, quantized, format, stats, workers)
    return quantized


def looks_at_whole_tensors(quantizer: Quantizer) -> bool:
    """Whether linears that share an input must be solved one by one."""
    per_weight = {"abs_gradient", "squared_gradient"} & quantizer.needs
    return bool(per_weight) or isinstance(quantizer, Selects | Finishes)
