"""Whole columns that stay in 16 bits and are visited last, so that they take up the errors."""

from dataclasses import replace

from jaxtyping import Bool, Float
from torch import Tensor

from pennyweight.core import Format, Mapper, Quantized, Stats
from pennyweight.quantize.gptq import GPTQ
from pennyweight.quantize.kept import kept_dtype
from pennyweight.saliency.select import count_of, keep_highest

NUMBER_BYTES = 4  # of a column's number: an int32


def keep_columns(
    weight: Float[Tensor, "out in"], score: Float[Tensor, " in"], share: float
) -> Bool[Tensor, "out in"]:
    """The mask of the `share` of columns that score highest."""
    return keep_highest(score[None], share).expand(weight.shape)


def column_bytes(shape: tuple[int, int], share: float, format: Format) -> int:
    """Of that share of columns of a weight [out, in], and of their numbers."""
    return count_of(share, shape[1]) * (shape[0] * kept_dtype(format).itemsize + NUMBER_BYTES)


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
