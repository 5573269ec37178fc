"""Codes that are looked up: in a table that is part of the format, or in one that each row has.

NF4 is the table of QLoRA (Dettmers et al. 2023, arXiv:2305.14314, appendix E). A table per row is
how SqueezeLLM (arXiv:2306.07629) stores what k-means finds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from pennyweight.core import Format, FormatError, QTensor, Scheme
from pennyweight.formats.base import GRIDS


@dataclass(frozen=True)
class Table:
    """A scalar grid of any values, ascending, 2^bits of them."""

    name: str
    values: tuple[float, ...]

    @property
    def bits(self) -> int:
        return (len(self.values) - 1).bit_length()

    @property
    def lowest(self) -> float:
        return self.values[0]

    @property
    def highest(self) -> float:
        return self.values[-1]

    @property
    def middle(self) -> float:
        return 0.0

    @property
    def reach(self) -> float:
        return max(-self.lowest, self.highest)

    def encode(self, value: Float[Tensor, "..."]) -> UInt8[Tensor, "..."]:
        values = torch.tensor(self.values)
        between = ((values[1:] + values[:-1]) / 2).to(value.dtype)
        return torch.bucketize(value.contiguous(), between, out_int32=True).to(torch.uint8)

    def decode(self, codes: UInt8[Tensor, "..."]) -> Float[Tensor, "..."]:
        return torch.tensor(self.values)[codes.to(torch.int32)]

    def nearest_(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return value.copy_(self.decode(self.encode(value)))


# Written out in full because this, and not the rule behind it, is what other tools decode by: the
# means of neighbouring quantiles of a Gaussian, 7 below zero and 8 above it, scaled to -1 and 1.
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
GRIDS.register("nf4")(Table("nf4", NF4))

NAME = re.compile(r"W4A16_nf4(?:_g(?P<group>[1-9]\d{0,5}))?|W(?P<bits>[2-6])A16_table")


def scheme(match: re.Match[str], dtype: torch.dtype) -> Scheme:
    """`W4A16_nf4[_g64]`, `W<2-6>A16_table`: scales or tables are stored in `dtype`."""
    if match["bits"]:
        weight = Format(grid=GRIDS[f"int{match['bits']}"], scale=None, table=dtype)
    else:
        group = int(match["group"]) if match["group"] else None
        weight = Format(grid=GRIDS["nf4"], group_size=group, scale=dtype)
    return Scheme(name=match[0], weight=weight)


def tabulate(
    weight: Float[Tensor, "rows cols"], table: Float[Tensor, "rows values"], format: Format
) -> QTensor:
    """Each weight as the nearest value of its row's table, which is rounded to its dtype first."""
    table = stored_table(table, format)
    between = table[:, 1:] / 2 + table[:, :-1] / 2  # halves first: a sum could overflow
    codes = torch.searchsorted(between, weight.contiguous().float(), out_int32=True)
    return QTensor(format=format, codes=codes.to(torch.uint8), scale=None, table=table)


def require_table(format: Format) -> None:
    """Raises FormatError for a format without a table per row."""
    if format.table is None:
        raise FormatError(
            f"{format.name} has no table per row to fill; use a scheme like W4A16_table"
        )


def stored_table(
    table: Float[Tensor, "rows values"], format: Format
) -> Float[Tensor, "rows values"]:
    """The table in ascending order, as it is stored."""
    assert format.table is not None, "checked by require_table"
    limit = torch.finfo(format.table).max
    return table.clamp(-limit, limit).to(format.table).float().sort(1).values


def uniform_table(
    weight: Float[Tensor, "rows cols"], format: Format
) -> Float[Tensor, "rows values"]:
    """Even steps from the least weight of a row to the largest, one of which is zero: the values
    that asymmetric integers stand for."""
    steps = 2**format.grid.bits - 1
    low, high = weight.amin(1).clamp(max=0).double(), weight.amax(1).clamp(min=0).double()
    step = (high - low) / steps
    zero = (-low / step.where(step > 0, 1.0)).round()
    counts = torch.arange(steps + 1, dtype=torch.float64)
    return ((counts - zero[:, None]) * step[:, None]).float()
