"""Weights that stay as they are while the others are rounded: in which dtype, and how."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from pennyweight.core import Format, Quantized, Sparse, Stats
from pennyweight.core.correction import saturated
from pennyweight.quantize.base import Keeps, Quantizer

PLAIN = (torch.float16, torch.bfloat16, torch.float32)


def kept_dtype(format: Format) -> torch.dtype:
    """The dtype kept weights are stored in: that of the innermost scale or of the table, which is
    the checkpoint's.

    A scale that is a power of two in one byte says nothing of the checkpoint; bfloat16 then holds
    any of its weights to 8 bits.
    """
    scale = format.table or format.scale
    while isinstance(scale, Format):
        scale = scale.scale
    return scale if scale in PLAIN else torch.bfloat16


def round_around(
    residual: Quantizer,
    weight: Float[Tensor, "out in"],
    format: Format,
    stats: Stats,
    keep: Bool[Tensor, "out in"],
) -> Quantized:
    """`residual` on all weights but those in `keep`, which stay.

    What is kept leaves a zero behind: it widens no range, and a zero is rounded without error.
    stats: with `keep` in it.
    """
    if isinstance(residual, Keeps):
        return residual(weight, format, stats)
    rounded = residual(weight.masked_fill(keep, 0), format, stats)
    sparse = Sparse.of(weight, keep, kept_dtype(format))
    return Quantized(
        weight=rounded.weight, corrections=(sparse, *rounded.corrections), notes=rounded.notes
    )


@dataclass(frozen=True)
class Kept:
    """The kept weights of a matrix that is solved column by column, in visiting order.

    Their values are those they have when their column comes, after the errors of earlier columns.
    threshold: of the squared error beyond which a weight is kept as well; None adds none.
    """

    keep: Bool[Tensor, "in out"]
    values: Float[Tensor, "in out"]
    dtype: torch.dtype
    threshold: float | None

    @classmethod
    def of(
        cls,
        keep: Bool[Tensor, "out in"],
        order: Int64[Tensor, " in"],
        format: Format,
        threshold: float | None,
    ) -> Kept:
        """order: visiting position -> column."""
        ordered = keep.T[order]
        return cls(ordered, torch.zeros(ordered.shape), kept_dtype(format), threshold)

    def visit(self, j: int, column: Tensor, rounded: Tensor, pivot: Tensor) -> Tensor:
        """What column `j` [out] becomes: `rounded`, or where it is kept itself as it is stored.

        pivot: the diagonal of the inverse Hessian's factor; its square is the squared error of
        this column that a unit of loss stands for, the columns before it being fixed.
        """
        if self.threshold is not None:
            self.keep[j] |= ((column - rounded) / pivot).square() > self.threshold
        self.values[j] = saturated(column, self.dtype).float()
        return self.values[j].where(self.keep[j], rounded)

    def sparse(self, order: Int64[Tensor, " in"]) -> Sparse:
        """In column order again."""
        keep, values = torch.empty_like(self.keep), torch.empty_like(self.values)
        keep[order], values[order] = self.keep, self.values
        return Sparse.of(values.T, keep.T.contiguous(), self.dtype)
