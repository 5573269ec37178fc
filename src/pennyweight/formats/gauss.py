"""Grids of points that round Gaussian numbers best, in one dimension or two, and groups that a
rotation makes Gaussian: HIGGS (Malinovskii et al. 2024, arXiv:2411.17525, section 4).

The points minimise the mean squared error of a standard normal vector; `tools/make_gauss_grids.py`
makes the file they are read from. The scale of a group is the root of its mean square.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from math import ceil
from pathlib import Path

import torch
from jaxtyping import Float, Int64, UInt8
from safetensors.torch import load_file
from torch import Tensor

from pennyweight.core import Format, Grid, Scheme, VectorGrid
from pennyweight.formats.base import GRIDS
from pennyweight.formats.table import Table

POINTS = load_file(Path(__file__).with_name("gauss.safetensors"))
REACH, CELLS_PER_UNIT = 5, 8  # of the map of cells: half its side, in standard deviations


@dataclass(frozen=True)
class Plane:
    """One code stands for two consecutive values: the nearest of 2^bits points in the plane."""

    name: str
    points: tuple[tuple[float, float], ...]

    @property
    def dim(self) -> int:
        return 2

    @property
    def width(self) -> int:
        return 2

    @property
    def bits(self) -> int:
        return (len(self.points) - 1).bit_length()

    @property
    def lowest(self) -> float:
        return min(min(point) for point in self.points)

    @property
    def highest(self) -> float:
        return max(max(point) for point in self.points)

    @property
    def middle(self) -> float:
        return 0.0

    @property
    def reach(self) -> float:
        return max(-self.lowest, self.highest)

    def encode(self, value: Float[Tensor, "..."]) -> UInt8[Tensor, "..."]:
        """Half as many codes along the last axis; in case of a tie the lower one."""
        pairs = value.reshape(-1, 2).float()
        codes = torch.cat([self._nearest(part) for part in pairs.split(2**18)])
        return codes.view(*value.shape[:-1], value.shape[-1] // 2)

    def decode(self, codes: UInt8[Tensor, "..."]) -> Float[Tensor, "..."]:
        return torch.tensor(self.points)[codes.to(torch.int32)].flatten(-2)

    def nearest_(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return value.copy_(self.decode(self.encode(value)))

    def _nearest(self, pairs: Float[Tensor, "pairs 2"]) -> UInt8[Tensor, " pairs"]:
        """Compare with those points that can be nearest anywhere in the cell of the pair; beyond
        the map, with all."""
        points, candidates = torch.tensor(self.points), cell_candidates(self)
        cell = ((pairs + REACH) * CELLS_PER_UNIT).nan_to_num(-1.0).floor()
        side = 2 * REACH * CELLS_PER_UNIT
        beyond = ((cell < 0) | (cell >= side)).any(1)
        cell = cell.clamp_(0, side - 1).long()
        cell = cell[:, 0] * side + cell[:, 1]
        found = torch.zeros(len(pairs), dtype=torch.int64)
        best = torch.full((len(pairs),), torch.inf)
        for column in candidates.unbind(1):
            code = column[cell]
            distance = (pairs - points[code]).square_().sum(1)
            nearer = distance < best
            found, best = code.where(nearer, found), distance.where(nearer, best)
        far = pairs[beyond]
        found[beyond] = (far[:, None] - points).square().sum(2).argmin(1)
        return found.to(torch.uint8)


@cache
def cell_candidates(grid: Plane) -> Int64[Tensor, "cells most"]:
    """For each cell of the map the codes that are nearest to some pair in it, ascending.

    A point that is nearest to a pair in the cell is no further from the cell's middle than the
    point nearest to the middle, plus the diagonal. Shorter lists repeat a code of their own.
    """
    side = 2 * REACH * CELLS_PER_UNIT
    middles = (torch.arange(side) + 0.5) / CELLS_PER_UNIT - REACH
    x, y = middles.repeat_interleave(side), middles.repeat(side)
    distance = (torch.stack([x, y], 1)[:, None] - torch.tensor(grid.points)).norm(dim=2)
    # 1e-4: more than what float32 makes of the distances and of the cell that a pair falls in
    near = distance <= distance.amin(1, keepdim=True) + 2**0.5 / CELLS_PER_UNIT + 1e-4
    codes = torch.arange(len(grid.points)).where(near, len(grid.points)).sort(1).values
    codes = codes[:, : int(near.sum(1).max())]
    return codes.where(codes < len(grid.points), codes[:, :1])


@dataclass(frozen=True)
class Rotated:
    """Runs of `block` values, multiplied by fixed random signs and a Hadamard matrix, on a grid.

    The rotation is orthonormal, so the error of the values is that of the rotated ones, which are
    close to Gaussian whatever the values were. One pattern of signs, made from `seed`, serves all
    runs: the format holds no data. block: a power of two.
    """

    grid: Grid
    block: int
    seed: int = 0

    @property
    def name(self) -> str:
        return f"rotated_{self.grid.name}"

    @property
    def dim(self) -> int:
        return self.grid.dim if isinstance(self.grid, VectorGrid) else 1

    @property
    def width(self) -> int:
        return self.block

    @property
    def bits(self) -> int:
        return self.grid.bits

    @property
    def lowest(self) -> float:
        return -self.highest

    @property
    def highest(self) -> float:
        """Where all of a block is one code at the end of the grid; far beyond what occurs."""
        return self.grid.reach * ceil(self.block**0.5)

    @property
    def middle(self) -> float:
        return 0.0

    @property
    def reach(self) -> float:
        return self.highest

    def encode(self, value: Float[Tensor, "..."]) -> UInt8[Tensor, "..."]:
        runs = value.reshape(*value.shape[:-1], -1, self.block)
        codes = self.grid.encode(hadamard(runs * signs(self.block, self.seed)))
        return codes.flatten(-2)

    def decode(self, codes: UInt8[Tensor, "..."]) -> Float[Tensor, "..."]:
        value = self.grid.decode(codes)
        runs = hadamard(value.reshape(*value.shape[:-1], -1, self.block))
        return (runs * signs(self.block, self.seed)).flatten(-2)

    def nearest_(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return value.copy_(self.decode(self.encode(value)))


def signs(block: int, seed: int) -> Float[Tensor, " block"]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (block,), generator=generator).float() * 2 - 1


def hadamard(value: Float[Tensor, "... block"]) -> Float[Tensor, "... block"]:
    """The last axis, a power of two long, times the symmetric orthonormal Hadamard matrix.

    As butterflies, one addition at a time: unlike a matrix product, to the last bit the same for
    any slice, any thread count and any machine.
    """
    block, step = value.shape[-1], 1
    flat = value.reshape(-1, block)
    while step < block:
        halves = flat.view(-1, block // (2 * step), 2, step)
        one, other = halves.unbind(2)
        flat = torch.stack((one + other, one - other), 2).view(-1, block)
        step *= 2
    return (flat * block**-0.5).view(value.shape)


def _register() -> None:
    for key, points in POINTS.items():
        name = f"gauss{points.shape[1]}_{len(points)}"
        if points.shape[1] == 1:
            GRIDS.register(name)(Table(name, tuple(points[:, 0].tolist())))
        else:
            assert key == f"p2_b{(len(points) - 1).bit_length() // 2}"
            GRIDS.register(name)(Plane(name, tuple((x, y) for x, y in points.tolist())))


_register()

NAME = re.compile(r"W(?P<bits>[2-4])A16_higgs(?P<dim>1)?_g(?P<group>[1-9]\d{0,5})")


def scheme(match: re.Match[str], dtype: torch.dtype) -> Scheme | None:
    """`W<2-4>A16_higgs[1]_g<n>`: pairs of weights, with a 1 single ones; a rotation and a scale in
    `dtype` for each group, which must be a power of two."""
    group, dim = int(match["group"]), 1 if match["dim"] else 2
    if group & (group - 1) or group < 2:
        return None
    grid = GRIDS[f"gauss{dim}_{2 ** (int(match['bits']) * dim)}"]
    weight = Format(grid=Rotated(grid, group), group_size=group, scale=dtype, range="rms")
    return Scheme(name=match[0], weight=weight)
