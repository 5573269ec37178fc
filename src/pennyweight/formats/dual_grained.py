"""Dual-grained W4A8: 4-bit groups inside an int8 row, so that the whole row is one int8 product.

    weight[o, i] = s[o] * k[o, g] * (q[o, i] - z[o, g])

q: uint4; k: integer 1 to 127 and z: integer, one byte each per group; s: one float per row. The
integer k * (q - z) must fit int8, so codes are restricted to z - floor(127 / k) .. z + floor(127 /
k): dequantization to 8 bits is pure integer, then one int8 x int8 -> int32 product runs over all
input features, and its epilogue multiplies by s[o] and the scale of the activation. In the one
formula this is a Format whose scale is a Format: int8 codes per group, a float per row.

DGQ (Zhang et al. 2023, arXiv:2310.04836) chooses 4-bit groups first and factors their scales; QoQ
(Lin et al. 2024, arXiv:2405.04532) rounds rows to int8 first and these to 4 bits. Both store this.
"""

import re

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from pennyweight.core import ActivationFormat, Format, FormatError, QTensor, Scheme, blocked, plain
from pennyweight.formats.base import GRIDS

LIMIT = 127  # of |k (q - z)|: the magnitudes that int8 has of either sign
# Bits of a row scale's mantissa. With 7 of k, and 7 of k (q - z), every product fits the 24 bits of
# float32, so that the float path gives the very numbers of the integer path.
MANTISSA = 16
LARGEST_ROW_SCALE = 2.0**120  # 128 of it are still finite in float32
NAME = re.compile(r"W4A8_dgq_g(?P<group>[1-9]\d{0,5})(?P<static>_static(?P<least>min)?)?")


def dual_grained(group_size: int | None, row_scale: torch.dtype = torch.float32) -> Format:
    rows = Format(grid=GRIDS["int8"], scale=row_scale)
    return Format(
        grid=GRIDS["int4"], group_size=group_size, scale=rows, zero_point=torch.int8,
        product_limit=LIMIT,
    )  # fmt: skip


def scheme(match: re.Match[str], _: torch.dtype) -> Scheme:
    """W4A8_dgq_g<n>[_static|_staticmin]. Row scales are float32 whatever the checkpoint's dtype:
    absmax / 127 of ordinary weights is below the normal numbers of float16."""
    rows = None if match["static"] else 1
    inputs = Format(grid=GRIDS["int8"], group_rows=rows, scale=torch.float32)
    return Scheme(
        name=match[0],
        weight=dual_grained(int(match["group"])),
        activation=ActivationFormat(
            format=inputs,
            dynamic=not match["static"],
            observed="least_absmax" if match["least"] else "absmax",
        ),
    )


def require_dual_grained(format: Format, method: str) -> Format:
    """The format of its row scales. Raises FormatError if `format` is of another kind."""
    if format.product_limit is None or not isinstance(format.scale, Format):
        raise FormatError(
            f"{method} builds dual-grained weights and nothing else; "
            f"use scheme W4A8_dgq_g{format.group_size or 128}"
        )
    return format.scale


def factor(
    scale: Float[Tensor, "rows groups"], zero_point: Float[Tensor, "rows groups"], format: Format
) -> tuple[QTensor, Float[Tensor, "rows groups"]]:
    """The (scale, zero_point) that the format stores for these of the groups.

    The step of the group that reaches furthest is a whole multiple of the row's scale, the largest
    under which none of its codes has to be restricted. A group of scale 0 asks for nothing.
    """
    grid = format.grid
    zero = zero_point.round().clamp(grid.lowest, grid.highest)
    farthest = torch.maximum(zero - grid.lowest, grid.highest - zero)
    widest = (scale * farthest).argmax(1, keepdim=True)
    whole = (LIMIT / farthest.gather(1, widest)).floor()
    row = store_row_scale(scale.gather(1, widest) / whole, format)
    return with_row_scale(scale, row, format), zero


def store_row_scale(scale: Float[Tensor, "rows 1"], format: Format) -> Float[Tensor, "rows 1"]:
    """The scales as stored: 16 bits of mantissa, in the dtype of the format; 1 in place of 0."""
    dtype = require_dual_grained(format, "factoring").scale
    assert isinstance(dtype, torch.dtype)
    mantissa, exponent = torch.frexp(scale.where(scale > 0, torch.ones_like(scale)))
    short = torch.ldexp((mantissa * 2**MANTISSA).round(), exponent - MANTISSA)
    limit = torch.finfo(dtype)
    return (
        short.clamp(limit.smallest_normal, min(limit.max, LARGEST_ROW_SCALE))
        .to(dtype)
        .to(scale.dtype)
    )


def with_row_scale(
    scale: Float[Tensor, "rows groups"], row: Float[Tensor, "rows 1"], format: Format
) -> QTensor:
    """The nearest whole multiples, 1 to 127, of the row's scale."""
    rows = require_dual_grained(format, "factoring")
    k = (scale / row).round().clamp(1, LIMIT)
    return QTensor(format=rows, codes=(k + rows.grid.middle).to(torch.uint8), scale=row)


def multipliers(scale: QTensor) -> Float[Tensor, "rows groups"]:
    """k of each group."""
    return scale.format.grid.decode(scale.codes) - scale.format.grid.middle


def code_range(format: Format, scale, zero_point) -> tuple[Tensor, Tensor] | None:
    """The least and largest code of each group [rows, groups] under which the product stays inside
    its limit; None for a format that has none."""
    if format.product_limit is None:
        return None
    assert isinstance(scale, QTensor)
    reach, zero = (format.product_limit / multipliers(scale)).floor(), plain(zero_point)
    return (zero - reach).clamp(min=format.grid.lowest), (zero + reach).clamp(
        max=format.grid.highest
    )


def integers(q: QTensor) -> Int8[Tensor, "rows cols"]:
    """k (q - z): the int8 weight that the integer product reads; times the row scale it is
    `q.dequantize()`, exactly."""
    require_dual_grained(q.format, "the integer path")
    assert isinstance(q.scale, QTensor)
    k, zero = multipliers(q.scale), plain(q.zero_point)
    steps = blocked(q.format.grid.decode(q.codes), tuple(k.shape)) - zero[:, None, :, None]
    return (steps * k[:, None, :, None]).view(q.codes.shape).to(torch.int8)
