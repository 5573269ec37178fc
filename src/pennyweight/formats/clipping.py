"""Search the range of each group: clipping a few extremes makes the steps finer for the rest."""

import torch
from jaxtyping import Float
from torch import Tensor

from pennyweight.core import Format, QTensor, blocked
from pennyweight.formats.rounding import fit, snap


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
    scale or zero point is itself quantized keep the full range: their scales cannot move alone.
    """
    full_scale, full_zero = fit(weight, format)
    if isinstance(full_scale, QTensor) or isinstance(full_zero, QTensor):
        return full_scale, full_zero
    blocks = blocked(weight, format.groups(*weight.shape))
    ones = torch.ones(weight.shape[1]) if importance is None else importance
    columns = ones.view(1, 1, *blocks.shape[2:])
    scratch = torch.empty_like(blocks)
    best_scale = full_scale
    best = _loss(blocks, full_scale, full_zero, format, columns, scratch)
    for fraction in fractions:
        scale, _ = snap(fraction * full_scale, None, format)
        loss = _loss(blocks, scale, full_zero, format, columns, scratch)
        better = loss < best
        best, best_scale = loss.where(better, best), scale.where(better, best_scale)
    return best_scale, full_zero


def _loss(blocks, scale, zero_point, format: Format, columns, scratch) -> Tensor:
    """Weighted squared error of each group. `scratch` [like blocks] spares an allocation a
    trial."""
    value = torch.div(blocks, scale[:, None, :, None], out=scratch)
    value += format.grid.middle if zero_point is None else zero_point[:, None, :, None]
    error = value - format.grid.nearest_(value.clone())
    return error.square_().mul_(columns).sum((1, 3)) * scale.square()


def fractions(smallest: float, steps: int) -> list[float]:
    """`steps` fractions from `smallest` up to, and without, the full range."""
    return torch.linspace(smallest, 1, steps + 1)[:-1].tolist()
