"""Whole columns that stay in 16 bits and are visited last, so that they take up the errors."""

from dataclasses import replace

from jaxtyping import Bool, Float
from torch import Tensor

from pennyweight.core import Format, Mapper, Quantized, Stats
from pennyweight.quantize.gptq import GPTQ
from pennyweight.saliency.select import keep_highest


def keep_columns(
    weight: Float[Tensor, "out in"], score: Float[Tensor, " in"], share: float
) -> Bool[Tensor, "out in"]:
    """The mask of the `share` of columns that score highest."""
    return keep_highest(score[None], share).expand(weight.shape)


def prepare_columns(gptq: GPTQ, stats: Stats, workers: Mapper) -> None:
    """The factor of these columns; without a choice of columns there is nothing to share."""
    if stats.keep is not None:
        gptq.factor(stats, workers, stats.keep[0])


def solve_around_columns(
    gptq: GPTQ,
    weight: Float[Tensor, "out in"],
    format: Format,
    stats: Stats,
    keep: Bool[Tensor, "out in"],
) -> Quantized:
    """GPTQ on all columns but those in `keep`, which follow at the end as they have become."""
    return gptq.solve(weight, format, replace(stats, keep=keep), last=keep[0])
