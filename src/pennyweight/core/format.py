"""How a tensor is stored. Format is the rule, QTensor is one tensor stored by that rule.

    weight = scale * (decode(codes) - zero_point)

`decode` looks a code up in the grid, or in a table that each row has of its own. `scale` and
`zero_point` are broadcast over blocks of `group_rows` x `group_size` weights, and each of them is
either stored plainly in a dtype or is itself a quantized tensor of the same formula. That recursion
is what makes one class enough for int4 groups, NVFP4, dual-grained W4A8 and K-quants.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from pennyweight.core.errors import FormatError


@runtime_checkable
class Grid(Protocol):
    """The values that one code can stand for, and the way from a value to its code."""

    @property
    def name(self) -> str: ...

    @property
    def bits(self) -> int:
        """Bits of one code, 1 to 8."""
        ...

    @property
    def lowest(self) -> float: ...

    @property
    def highest(self) -> float: ...

    @property
    def middle(self) -> float:
        """The value that a weight of zero decodes to when no zero point is stored."""
        ...

    @property
    def reach(self) -> float:
        """What the largest magnitude of a symmetric group is scaled to, counted from `middle`."""
        ...

    def encode(self, value: Float[Tensor, "..."]) -> UInt8[Tensor, "..."]:
        """Nearest code of each value; values outside the grid go to its ends."""
        ...

    def decode(self, codes: UInt8[Tensor, "..."]) -> Float[Tensor, "..."]: ...

    def nearest_(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """decode(encode(value)), in the memory of `value`."""
        ...


@runtime_checkable
class VectorGrid(Grid, Protocol):
    """A grid whose codes stand for several consecutive values each: decode makes the last axis
    `dim` times as long."""

    @property
    def dim(self) -> int:
        """Values per code."""
        ...

    @property
    def width(self) -> int:
        """Consecutive values that are rounded together, a multiple of `dim`."""
        ...


# How a symmetric group's scale follows from its largest magnitude: `formats.ranges` defines them.
# "rms" is from the root of its mean square, for grids of numbers of unit variance.
# "span" is for levels of scales and zero points: from the least to the largest, with or without 0.
Range = Literal["reach", "ocp", "even", "rceil", "msfp", "span", "rms"]


@dataclass(frozen=True, kw_only=True)
class Format:
    """The grid, the groups, and how the numbers that belong to a group are stored.

    group_size: consecutive values along the last axis that share a scale; None is the whole row.
    group_rows: rows that share it; None is all of them. scale: the dtype it is stored in (with
    torch.float8_e8m0fnu a power of two in one byte), or the Format it is quantized by; None beside
    a table. table: the dtype of 2^bits values per row, in which the codes of an integer grid are
    looked up; nothing else is stored then. zero_point: None for the middle of the grid (symmetric,
    nothing stored), torch.uint8 for a code of the grid (stored in `grid.bits` bits), torch.int8 for
    an integer in a byte, a float dtype, or a Format. range: how a symmetric group's scale is
    chosen; all but "reach" and "rms" give powers of two. It decides numbers, not how they are
    stored. product_limit: bound of |(code - zero_point) * code of the scale|, beyond which no code
    is used (`formats.dual_grained`); None is no bound.
    """

    grid: Grid
    group_size: int | None = None
    group_rows: int | None = 1
    scale: torch.dtype | Format | None = torch.float16
    zero_point: torch.dtype | Format | None = None
    range: Range = "reach"
    product_limit: int | None = None
    table: torch.dtype | None = None

    @property
    def symmetric(self) -> bool:
        return self.zero_point is None

    @property
    def name(self) -> str:
        group = f"_g{self.group_size}" if self.group_size else ""
        rows = "" if self.group_rows == 1 else "_tensor" if self.group_rows is None else "_block"
        table = "_table" if self.table else ""
        return f"{self.grid.name}{table}{group}{rows}{'' if self.symmetric else '_asym'}"

    @property
    def dim(self) -> int:
        """Consecutive values that one code stands for."""
        return self.grid.dim if isinstance(self.grid, VectorGrid) else 1

    @property
    def rows_independent(self) -> bool:
        """Whether storing a slice of rows gives the slice of what is stored: at no level do rows
        share a number."""
        levels = (self.scale, self.zero_point)
        inner = all(level.rows_independent for level in levels if isinstance(level, Format))
        return self.group_rows == 1 and inner

    def groups(self, rows: int, cols: int) -> tuple[int, int]:
        """Shape of the scale of a `rows` x `cols` tensor. Raises FormatError on a ragged group."""
        high, wide = self.group_rows or max(rows, 1), self.group_size or max(cols, 1)
        if cols % wide:
            usual = [size for size in (256, 128, 64, 32, 16, 8) if cols % size == 0]
            sizes = usual or [size for size in range(cols // 2, 1, -1) if cols % size == 0]
            use = f"use {', '.join(map(str, sizes[:6]))}" if sizes else "use one group per row"
            raise FormatError(f"in_features {cols} is not a multiple of group_size {wide}; {use}")
        if rows % high:
            raise FormatError(f"out_features {rows} is not a multiple of group_rows {high}")
        if isinstance(self.grid, VectorGrid) and wide % self.grid.width:
            raise FormatError(
                f"groups of {wide} weights cannot be cut into the {self.grid.width} that "
                f"{self.grid.name} rounds together"
            )
        for level in (self.scale, self.zero_point):
            inner = level.group_size if isinstance(level, Format) else None
            if inner and cols // wide % inner:
                raise FormatError(
                    f"in_features {cols} has {cols // wide} groups of {wide}, which is not a "
                    f"multiple of the {inner} that share a second level"
                )
        return rows // high, cols // wide


@dataclass(frozen=True, kw_only=True)
class QTensor:
    """One tensor stored by a Format. Data only; algorithms live elsewhere."""

    format: Format
    codes: UInt8[Tensor, "rows codes"]
    scale: Float[Tensor, "row_groups groups"] | QTensor | None
    zero_point: Float[Tensor, "row_groups groups"] | QTensor | None = None
    table: Float[Tensor, "rows values"] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Of the values, of which a code may stand for several."""
        return self.codes.shape[0], self.codes.shape[1] * self.format.dim

    def dequantize(self) -> Float[Tensor, "rows cols"]:
        """The stored values in float32."""
        if self.table is not None:
            return self.table.gather(1, self.codes.long())
        scale, zero_point = plain(self.scale), plain(self.zero_point)
        value = blocked(self.format.grid.decode(self.codes), scale.shape)
        zero = self.format.grid.middle if zero_point is None else zero_point[:, None, :, None]
        return ((value - zero) * scale[:, None, :, None]).view(self.shape)

    def rows(self, start: int, stop: int) -> QTensor:
        """Rows start .. stop - 1, which must not cut through a group; a scale that all rows share
        stays whole."""
        high = self.format.group_rows
        if high is not None and (start % high or (stop % high and stop < len(self.codes))):
            raise FormatError(f"rows {start} to {stop - 1} cut through groups of {high} rows")

        def part(value):
            if value is None or high is None:
                return value
            first, last = start // high, -(-stop // high)
            return value.rows(first, last) if isinstance(value, QTensor) else value[first:last]

        return replace(
            self, codes=self.codes[start:stop],
            scale=part(self.scale), zero_point=part(self.zero_point), table=part(self.table),
        )  # fmt: skip

    def join(self, others: list[QTensor]) -> QTensor:
        """The inverse of cutting with `rows`, for a format whose rows are independent."""

        def one(values: list):
            if isinstance(values[0], QTensor):
                return values[0].join(values[1:])
            return None if values[0] is None else torch.cat(values)

        parts = [self, *others]
        return replace(
            self, codes=torch.cat([part.codes for part in parts]),
            scale=one([part.scale for part in parts]),
            zero_point=one([part.zero_point for part in parts]),
            table=one([part.table for part in parts]),
        )  # fmt: skip


def plain(value) -> Any:
    """The numbers of a scale or zero point, whatever it is stored as; None if there is none."""
    return value.dequantize() if isinstance(value, QTensor) else value


def blocked(
    tensor: Shaped[Tensor, "rows cols"], groups: tuple[int, ...]
) -> Shaped[Tensor, "row_groups group_rows groups group_size"]:
    """A view in which axes 1 and 3 run inside a group and axes 0 and 2 over the groups."""
    rows, cols = tensor.shape
    down, across = groups
    return tensor.view(down, rows // max(down, 1), across, cols // max(across, 1))
