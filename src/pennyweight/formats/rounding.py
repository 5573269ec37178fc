"""From numbers to a QTensor: choose a scale, round it to what is stored, then choose the codes.

Scales are rounded to their stored type before any code is chosen, so that what is computed with is
what a reader of the file sees.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from pennyweight.core import (
    Format,
    FormatError,
    NumericalError,
    QTensor,
    VectorGrid,
    blocked,
    plain,
)
from pennyweight.formats.dual_grained import code_range, factor
from pennyweight.formats.ranges import RANGES, root_mean_square
from pennyweight.formats.table import tabulate, uniform_table


def fit(weight: Float[Tensor, "rows cols"], format: Format):
    """The smallest storable (scale, zero_point) under which no weight is off by over half a step.

    Up to the rounding of the stored scale, and to what the `range` of a symmetric format clips.
    Zero is always representable, because a padded or pruned weight must stay zero: a one-sided
    group keeps its zero inside the range.
    """
    require_scale(format)
    blocks, grid = blocked(weight, format.groups(*weight.shape)), format.grid
    if format.range == "span":
        return _span(blocks, format)
    if format.range == "rms":
        return snap(root_mean_square(blocks), None, format)
    if format.symmetric:
        return snap(RANGES[format.range](blocks.abs().amax((1, 3)), grid), None, format)
    low, high = blocks.amin((1, 3)).clamp(max=0), blocks.amax((1, 3)).clamp(min=0)
    scale = (high - low) / (grid.highest - grid.lowest)
    return snap(scale, grid.lowest - low / positive(scale), format)


def require_scale(format: Format) -> None:
    """Raises FormatError for a format with nothing but a table: there is no scale to choose."""
    if format.scale is None:
        raise FormatError(
            f"{format.name} has a table per row and no scale, which this method chooses; use the "
            "quantizer squeezellm, kmeans or rtn"
        )


def require_columns(format: Format) -> None:
    """Raises FormatError for a format that cannot be rounded column by column: one with tables, or
    with codes that stand for several weights."""
    require_scale(format)
    if isinstance(format.grid, VectorGrid):
        raise FormatError(
            f"{format.name} rounds {format.grid.width} weights of a row together, and this method "
            "one column after the other; use the quantizer higgs or rtn"
        )


def _span(blocks: Tensor, format: Format):
    """From the least to the largest value, for scales and zero points: they are never zero because
    something was padded."""
    assert isinstance(format.zero_point, torch.dtype)
    low, high = blocks.amin((1, 3)), blocks.amax((1, 3))
    steps = format.grid.highest - format.grid.lowest
    # The zero point lies low / scale steps from the codes: no further than its dtype can count.
    least = torch.maximum(high.abs(), low.abs()) * (4 * torch.finfo(format.zero_point).eps)
    scale = plain(snap(torch.maximum((high - low) / steps, least), None, format)[0])
    return scale, snap(None, format.grid.lowest - low / scale, format)[1]


def snap(scale, zero_point, format: Format):
    """The nearest (scale, zero_point) that the format can store; quantized ones if it is
    recursive. A scale of zero (of an all-zero group) becomes one that is not."""
    if format.product_limit is not None and isinstance(scale, Tensor):
        return factor(scale, zero_point, format)
    if isinstance(scale, Tensor):
        scale = _stored_scale(scale, format)
    if isinstance(zero_point, Tensor):
        zero_point = _stored_zero_point(zero_point, format)
    return scale, zero_point


def positive(scale: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """1 where the scale is zero (an all-zero group): any scale stores zeros, but 0 divides."""
    return scale.where(scale > 0, torch.ones((), dtype=scale.dtype))


def _stored_scale(scale: Tensor, format: Format) -> Tensor | QTensor:
    if isinstance(format.scale, Format):
        if format.scale.range == "span":  # an all-zero group must not widen it
            scale = scale.where(scale > 0, scale.amax(1, keepdim=True))
        return lift(round_to_nearest(scale, format.scale))
    assert format.scale is not None, "a format without a scale has none to store"
    limit = torch.finfo(format.scale)
    if format.range == "rms":  # such grids need not hold zero: where all is zero, the scale is
        return scale.clamp(max=limit.max).to(format.scale).to(scale.dtype)
    # Below the smallest subnormal a half-precision scale would become 0 and the codes infinite.
    stored = positive(scale).clamp(limit.smallest_normal, limit.max)
    return stored.to(format.scale).to(scale.dtype)


def _stored_zero_point(zero_point: Tensor, format: Format) -> Tensor | QTensor:
    if isinstance(format.zero_point, Format):
        return round_to_nearest(zero_point, format.zero_point)
    if format.zero_point in (torch.uint8, torch.int8):
        return zero_point.round().clamp(format.grid.lowest, format.grid.highest)
    assert format.zero_point is not None
    limit = torch.finfo(format.zero_point)
    return zero_point.clamp(limit.min, limit.max).to(format.zero_point).to(zero_point.dtype)


def lift(scale: QTensor) -> QTensor:
    """Quantized scales, those that were rounded to zero one code up: a zero would divide."""
    grid, zero_point = scale.format.grid, plain(scale.zero_point)
    codes = blocked(scale.codes, plain(scale.scale).shape)
    zero = torch.tensor(grid.middle) if zero_point is None else zero_point[:, None, :, None]
    lowest = grid.encode(zero)
    lifted = (lowest + 1).where(grid.decode(codes) <= zero, codes)
    return replace(scale, codes=lifted.view(scale.codes.shape))


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
    if format.table is not None:
        return tabulate(weight, uniform_table(weight, format), format)
    scale, zero_point = fit(weight, format) if scale is None else snap(scale, zero_point, format)
    value = blocked(weight, groups) / positive(plain(scale))[:, None, :, None]
    zero = format.grid.middle if zero_point is None else plain(zero_point)[:, None, :, None]
    value += zero
    if limits := code_range(format, scale, zero_point):
        low, high = (limit[:, None, :, None] for limit in limits)
        value = value.clamp_(low, high)
    codes = format.grid.encode(value).view(len(weight), -1)
    return QTensor(format=format, codes=codes, scale=scale, zero_point=zero_point)
