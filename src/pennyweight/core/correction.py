"""What a weight may carry on top of its codes: some weights exact, or a matrix of low rank."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from pennyweight.core.errors import NumericalError
from pennyweight.core.format import QTensor, plain


@dataclass(frozen=True, kw_only=True)
class Sparse:
    """Weights stored as they are, in place of what their codes say.

    In place of and not on top of, so that a weight that is kept is kept bit for bit. Whole columns
    are a mask like any other; what is cheapest to store is decided when it is stored.
    """

    keep: Bool[Tensor, "out in"]
    values: Shaped[Tensor, " kept"]  # row by row, in the dtype they are stored in

    @classmethod
    def of(cls, weight: Float[Tensor, "out in"], keep: Tensor, dtype: torch.dtype) -> Sparse:
        """Values beyond the dtype go to its ends, as codes do. Raises NumericalError on NaN or
        Inf."""
        values = weight[keep]
        if not bool(values.isfinite().all()):
            raise NumericalError("weight holds NaN or Inf, which cannot be kept")
        return cls(keep=keep, values=saturated(values, dtype))

    def apply(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        return weight.masked_scatter(self.keep, self.values.to(weight.dtype))

    def rows(self, start: int, stop: int) -> Sparse:
        before, within = int(self.keep[:start].sum()), int(self.keep[start:stop].sum())
        return Sparse(keep=self.keep[start:stop], values=self.values[before : before + within])

    def join(self, others: list[Sparse]) -> Sparse:
        parts = [self, *others]
        return Sparse(
            keep=torch.cat([part.keep for part in parts]),
            values=torch.cat([part.values for part in parts]),
        )


def saturated(values: Float[Tensor, "..."], dtype: torch.dtype) -> Shaped[Tensor, "..."]:
    """In `dtype`; what lies beyond it goes to its ends."""
    largest = torch.finfo(dtype).max
    return values.clamp(-largest, largest).to(dtype)


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """left @ right, added to the weight."""

    left: Float[Tensor, "out rank"] | QTensor
    right: Float[Tensor, "rank in"] | QTensor

    def apply(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        return weight + plain(self.left).float() @ plain(self.right).float()

    def rows(self, start: int, stop: int) -> LowRank:
        left = self.left
        return replace(
            self, left=left.rows(start, stop) if isinstance(left, QTensor) else left[start:stop]
        )

    def join(self, others: list[LowRank]) -> LowRank:
        """Slices of one weight: they share `right`."""
        if isinstance(self.left, QTensor):
            quantized = [other.left for other in others if isinstance(other.left, QTensor)]
            return replace(self, left=self.left.join(quantized))
        return replace(self, left=torch.cat([plain(one.left) for one in (self, *others)]))


Correction = Sparse | LowRank
