"""From numbers to a QTensor: choose a scale, round it to what is stored, then choose the codes.

Scales are rounded to their stored type before any code is chosen, so that what is computed with is
what a reader of the file sees.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from pennyweight.core import Format, NumericalError, QTensor, blocked, plain


def fit(weight: Float[Tensor, "rows cols"], format: Format):
    """The smallest storable (scale, zero_point) under which no weight is off by over half a step.

    Up to the rounding of the stored scale. A symmetric grid of integers has one value more below
    zero than above, so its range is half of all its steps on either side (7.5 for 4 bits): the
    largest positive weight is clipped by half a step, which rounding may cost anyway. Zero is
    always representable, because a padded or pruned weight must stay zero: a one-sided group keeps
    its zero inside the range.
    """
    blocks, grid = blocked(weight, format.groups(*weight.shape)), format.grid
    if format.symmetric:
        reach = (grid.highest - grid.lowest) / 2
        return snap(blocks.abs().amax((1, 3)) / reach, None, format)
    low, high = blocks.amin((1, 3)).clamp(max=0), blocks.amax((1, 3)).clamp(min=0)
    scale = (high - low) / (grid.highest - grid.lowest)
    return snap(scale, grid.lowest - low / positive(scale), format)


def snap(scale, zero_point, format: Format):
    """The nearest (scale, zero_point) that the format can store; quantized ones if it is
    recursive."""
    if isinstance(scale, Tensor):
        scale = _stored_scale(positive(scale), format)
    if isinstance(zero_point, Tensor):
        zero_point = _stored_zero_point(zero_point, format)
    return scale, zero_point


def positive(scale: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """1 where the scale is zero (an all-zero group): any scale stores zeros, but 0 divides."""
    return scale.where(scale > 0, torch.ones((), dtype=scale.dtype))


def _stored_scale(scale: Tensor, format: Format) -> Tensor | QTensor:
    if isinstance(format.scale, Format):
        return round_to_nearest(scale, format.scale)
    limit = torch.finfo(format.scale)
    # Below the smallest subnormal a half-precision scale would become 0 and the codes infinite.
    return scale.clamp(limit.smallest_normal, limit.max).to(format.scale).to(scale.dtype)


def _stored_zero_point(zero_point: Tensor, format: Format) -> Tensor | QTensor:
    if isinstance(format.zero_point, Format):
        return round_to_nearest(zero_point, format.zero_point)
    if format.zero_point is torch.uint8:
        return zero_point.round().clamp(format.grid.lowest, format.grid.highest)
    return zero_point.to(format.zero_point).to(zero_point.dtype)


def round_to_nearest(
    weight: Float[Tensor, "rows cols"], format: Format, scale=None, zero_point=None
) -> QTensor:
    """Nearest codes under (scale, zero_point) [row_groups, groups], by default those that clip
    nothing.

    Both are snapped to what the format stores first. Raises NumericalError on NaN or Inf,
    FormatError on a group that does not divide.
    """
    if not bool(weight.isfinite().all()):
        raise NumericalError("weight holds NaN or Inf, which no code can stand for")
    groups = format.groups(*weight.shape)
    scale, zero_point = fit(weight, format) if scale is None else snap(scale, zero_point, format)
    value = blocked(weight, groups) / plain(scale)[:, None, :, None]
    zero = format.grid.middle if zero_point is None else plain(zero_point)[:, None, :, None]
    codes = format.grid.encode(value + zero).view(weight.shape)
    return QTensor(format=format, codes=codes, scale=scale, zero_point=zero_point)
