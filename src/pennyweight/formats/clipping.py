"""Search the range of each group: clipping a few extremes makes the steps finer for the rest."""

from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from pennyweight.core import Format, Grid, QTensor, blocked
from pennyweight.formats.rounding import fit, snap

SLICE = 2**16  # weights searched at a time: with two copies they stay in a core's own cache


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
    scales = [full_scale, *(snap(part * full_scale, None, format)[0] for part in fractions)]
    best = torch.empty_like(full_scale)
    step = max(SLICE // max(prod(blocks.shape[1:]), 1), 1)
    for start in range(0, len(blocks), step):
        rows = slice(start, start + step)
        zero = format.grid.middle if full_zero is None else full_zero[rows, None, :, None]
        found = _best(blocks[rows], [scale[rows] for scale in scales], zero, format.grid, columns)
        best[rows] = found
    return best, full_zero


def _best(blocks, scales: list[Tensor], zero, grid: Grid, columns) -> Tensor:
    """Of each group the scale with the least weighted squared error; the first, if several are."""
    value, nearest = torch.empty_like(blocks), torch.empty_like(blocks)
    best, least = scales[0], None
    for scale in scales:
        torch.div(blocks, scale[:, None, :, None], out=value).add_(zero)
        value -= grid.nearest_(nearest.copy_(value))
        loss = value.square_().mul_(columns).sum((1, 3)) * scale.square()
        better = loss < (loss if least is None else least)
        best = scale.where(better, best)
        least = loss if least is None else loss.where(better, least)
    return best


def fractions(smallest: float, steps: int) -> list[float]:
    """`steps` fractions from `smallest` up to, and without, the full range."""
    return torch.linspace(smallest, 1, steps + 1)[:-1].tolist()
