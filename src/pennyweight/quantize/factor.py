"""The factor of the inverse Hessian that error feedback needs, with damping and column order."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from pennyweight.core import NumericalError


@dataclass(frozen=True, kw_only=True)
class InverseFactor:
    """upper^T upper = (hessian[order][:, order] + damp * mean diagonal * I)^-1."""

    upper: Float[Tensor, "in in"]
    order: Int64[Tensor, " in"]  # visiting position -> column
    diagonal: Float[Tensor, " in"]  # of the Hessian, in column order
    damp: float  # what it took


def inverse_factor(hessian: Float[Tensor, "in in"], damp: float, act_order: bool) -> InverseFactor:
    """Factor with the least damping of damp, 10 damp, 100 damp, ... up to 1 that succeeds.

    A column that saw no input (zero diagonal) gets the mean diagonal and no neighbours: it is
    rounded to nearest. Raises NumericalError on NaN or Inf, or if damping by 1 is not enough.
    """
    diagonal = hessian.diagonal().clone()
    if not bool(diagonal.isfinite().all()):
        raise NumericalError(
            "the Hessian holds NaN or Inf: the inputs of this layer are not finite"
        )
    mean = diagonal.mean().item() or 1.0  # inputs that are all zero: any positive number will do
    count = len(diagonal)
    order = diagonal.argsort(descending=True, stable=True) if act_order else torch.arange(count)
    trial = damp
    while True:
        upper = _factor(hessian, order, diagonal, trial * mean, mean)
        if upper is not None:
            return InverseFactor(upper=upper, order=order, diagonal=diagonal, damp=trial)
        if trial >= 1:
            raise NumericalError(
                f"the Hessian is not positive definite even with damp={trial:g}; "
                "use more, or more varied, calibration samples"
            )
        trial = min(max(10 * trial, 1e-4), 1.0)


def _factor(hessian, order, diagonal, added: float, dead: float) -> Tensor | None:
    """With H reversed = L L^T, the reversed inverse of L is the upper factor of the inverse of
    H."""
    backwards = order.flip(0)
    damped = hessian[backwards][:, backwards]
    damped.diagonal().add_(added)
    damped.diagonal()[diagonal[backwards] == 0] += dead
    # Lower the memory peak at 11008 columns, where each copy is half a gigabyte: factor in place.
    lower, failed = torch.linalg.cholesky_ex(damped)
    del damped
    if failed or not bool(lower.diagonal().isfinite().all()):
        return None
    identity = torch.eye(len(order), dtype=lower.dtype)
    inverse = torch.linalg.solve_triangular(lower, identity, upper=False, out=identity)
    return inverse.flip(0, 1)
