"""Search the range of each group: clipping a few extreme weights makes the steps finer for the
rest."""

import torch
from jaxtyping import Float
from torch import Tensor

from pennyweight.core import Format, blocked
from pennyweight.formats.rounding import fit, round_to_nearest, snap


def search_range(
    weight: Float[Tensor, "rows cols"],
    format: Format,
    *,
    fractions: list[float],
    importance: Float[Tensor, " cols"] | None = None,
):
    """(scale, zero_point) of the fraction of the full range with the least squared error, per
    group.

    importance: weight of each column's squared error, such as the diagonal of the Hessian. The full
    range is always a candidate, so the result is never worse than `fit` on this loss. Formats whose
    scale is itself quantized are left at the full range: their scales are not free to move alone.
    """
    best = fit(weight, format)
    if isinstance(format.scale, Format):
        return best
    groups = format.groups(*weight.shape)
    full_scale, full_zero = best

    def loss(scale, zero_point) -> Tensor:
        rounded = round_to_nearest(weight, format, scale, zero_point).dequantize()
        error = (weight - rounded).square_()
        return blocked(error if importance is None else error * importance, groups).sum((1, 3))

    best_scale, best_zero, best_loss = full_scale, full_zero, loss(full_scale, full_zero)
    for fraction in fractions:
        scale, zero = snap(fraction * full_scale, full_zero, format)
        trial = loss(scale, zero)
        better = trial < best_loss
        best_loss, best_scale = trial.where(better, best_loss), scale.where(better, best_scale)
        if zero is not None:
            best_zero = zero.where(better, best_zero)
    return best_scale, best_zero


def fractions(smallest: float, steps: int) -> list[float]:
    """`steps` fractions from `smallest` up to, and without, the full range."""
    return torch.linspace(smallest, 1, steps + 1)[:-1].tolist()
