"""The factor of the inverse Hessian that error feedback needs, with damping and column order."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from pennyweight.core import NumericalError, Stats

LEAF = 256  # rows below which halving further costs more than it saves
LARGEST_DAMP = 1.0  # as large as the mean diagonal itself: beyond it little of the Hessian is left


@dataclass(frozen=True, kw_only=True)
class InverseFactor:
    """upper^T upper = (hessian[order][:, order] + damp * mean diagonal * I)^-1."""

    upper: Float[Tensor, "in in"]
    order: Int64[Tensor, " in"]  # visiting position -> column
    diagonal: Float[Tensor, " in"]  # of the Hessian, in column order
    damp: float  # what it took


def inverse_factor(stats: Stats, damp: float, act_order: bool) -> InverseFactor:
    """Factor with the least damping of damp, 10 damp, 100 damp, ... up to 1 that succeeds.

    A column that saw no input (zero diagonal) gets the mean diagonal and no neighbours: it is
    rounded to nearest. Each damping is tried in float32 and then in float64. Raises NumericalError
    on NaN or Inf, or if the largest damping is not enough.
    """
    if stats.gram is None:
        raise NumericalError("no Hessian was observed; this method needs calibration data")
    diagonal = stats.gram.diagonal() / max(stats.tokens, 1)
    if not bool(diagonal.isfinite().all()):
        raise NumericalError(
            "the Hessian holds NaN or Inf: the inputs of this layer are not finite"
        )
    mean = diagonal.mean().item() or 1.0  # inputs that are all zero: any positive number will do
    columns = torch.arange(len(diagonal))
    order = diagonal.argsort(descending=True, stable=True) if act_order else columns
    trial = damp
    while True:
        extra = torch.where(diagonal == 0, mean, 0.0) + trial * mean
        for dtype in (torch.float32, torch.float64):
            upper = _factor(stats, order, extra, dtype)
            if upper is not None:
                return InverseFactor(upper=upper, order=order, diagonal=diagonal, damp=trial)
        if trial >= LARGEST_DAMP:
            raise NumericalError(
                f"the Hessian is not positive definite even with damp={trial:g}; "
                "use more, or more varied, calibration samples"
            )
        trial = min(max(10 * trial, 1e-4), LARGEST_DAMP)


def _factor(stats: Stats, order, extra, dtype: torch.dtype) -> Float[Tensor, "in in"] | None:
    """With H reversed = L L^T, the reversed inverse of L is the upper factor of the inverse of H.

    Frees each matrix as soon as the next exists: at 11008 columns one is half a gigabyte.
    """
    backwards = order.flip(0)
    assert stats.gram is not None
    damped = stats.gram[backwards][:, backwards].to(dtype).div_(max(stats.tokens, 1))
    damped.diagonal().add_(extra[backwards])
    lower, failed = torch.linalg.cholesky_ex(damped)
    del damped
    if failed or not bool(lower.diagonal().isfinite().all()):
        return None
    invert_lower_(lower)
    return lower.flip(0, 1).to(stats.gram.dtype)


def invert_lower_(lower: Float[Tensor, "n n"]) -> None:
    """Replace a lower triangular matrix by its inverse, in its own memory.

    By halves: [[A, 0], [B, C]]^-1 = [[A^-1, 0], [-C^-1 B A^-1, C^-1]]. A third of the operations of
    solving against the identity, nearly all of them in large matrix products.
    """
    size = len(lower)
    if size <= LEAF:
        identity = torch.eye(size, dtype=lower.dtype)
        lower.copy_(torch.linalg.solve_triangular(lower, identity, upper=False))
        return
    half = size // 2
    first, corner, last = lower[:half, :half], lower[half:, :half], lower[half:, half:]
    invert_lower_(first)
    invert_lower_(last)
    corner.copy_(last @ (corner @ first)).neg_()
