"""How a tensor is stored. Format is the rule, QTensor is one tensor stored by that rule.

    weight = scale * (decode(codes) - zero_point)

`scale` and `zero_point` are broadcast over blocks of `group_rows` x `group_size` weights, and each
of them is either stored plainly in a dtype or is itself a quantized tensor of the same formula.
That recursion is what makes one class enough for int4 groups, NVFP4, dual-grained W4A8 and
K-quants.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

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

    def encode(self, value: Float[Tensor, "..."]) -> UInt8[Tensor, "..."]:
        """Nearest code of each value; values outside the grid go to its ends."""
        ...

    def decode(self, codes: UInt8[Tensor, "..."]) -> Float[Tensor, "..."]: ...

    def nearest_(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """decode(encode(value)), in the memory of `value`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Format:
    """The grid, the groups, and how the numbers that belong to a group are stored.

    group_size: consecutive values along the last axis that share a scale; None is the whole row.
    group_rows: rows that share it; None is all of them. scale: the dtype it is stored in, or the
    Format it is quantized by. zero_point: None for the middle of the grid (symmetric, nothing
    stored), torch.uint8 for a code of the grid (stored in `grid.bits` bits), a float dtype, or a
    Format.
    """

    grid: Grid
    group_size: int | None = None
    group_rows: int | None = 1
    scale: torch.dtype | Format = torch.float16
    zero_point: torch.dtype | Format | None = None

    @property
    def symmetric(self) -> bool:
        return self.zero_point is None

    @property
    def name(self) -> str:
        group = f"_g{self.group_size}" if self.group_size else ""
        rows = "" if self.group_rows == 1 else "_tensor" if self.group_rows is None else "_block"
        return f"{self.grid.name}{group}{rows}{'' if self.symmetric else '_asym'}"

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
        return rows // high, cols // wide


@dataclass(frozen=True, kw_only=True)
class QTensor:
    """One tensor stored by a Format. Data only; algorithms live elsewhere."""

    format: Format
    codes: UInt8[Tensor, "rows cols"]
    scale: Float[Tensor, "row_groups groups"] | QTensor
    zero_point: Float[Tensor, "row_groups groups"] | QTensor | None = None

    def dequantize(self) -> Float[Tensor, "rows cols"]:
        """The stored values in float32."""
        scale, zero_point = plain(self.scale), plain(self.zero_point)
        value = blocked(self.format.grid.decode(self.codes), scale.shape)
        zero = self.format.grid.middle if zero_point is None else zero_point[:, None, :, None]
        return ((value - zero) * scale[:, None, :, None]).view(self.codes.shape)

    def rows(self, start: int, stop: int) -> QTensor:
        """Rows start .. stop - 1; its groups must lie within rows."""
        return self._each([self], lambda parts: parts[0][start:stop])

    def join(self, others: list[QTensor]) -> QTensor:
        """The inverse of cutting with `rows`."""
        return self._each([self, *others], torch.cat)

    def _each(self, parts: list[QTensor], how: Callable[[list[Tensor]], Tensor]) -> QTensor:
        """`how` of the tensors in the same place of all parts, all the way down."""

        def one(values: list):
            if isinstance(values[0], QTensor):
                return values[0]._each(values, how)
            return None if values[0] is None else how(values)

        return replace(
            self,
            codes=how([part.codes for part in parts]),
            scale=one([part.scale for part in parts]),
            zero_point=one([part.zero_point for part in parts]),
        )


def plain(value):
    """The numbers of a scale or zero point, whatever it is stored as."""
    return value.dequantize() if isinstance(value, QTensor) else value


def blocked(
    tensor: Shaped[Tensor, "rows cols"], groups: tuple[int, ...]
) -> Shaped[Tensor, "row_groups group_rows groups group_size"]:
    """A view in which axes 1 and 3 run inside a group and axes 0 and 2 over the groups."""
    rows, cols = tensor.shape
    down, across = groups
    return tensor.view(down, rows // max(down, 1), across, cols // max(across, 1))
