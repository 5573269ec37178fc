"""From the largest magnitude of a group to its scale: the conventions that are published.

`top` is the largest magnitude that has a code of either sign (127 of int8, 6 of e2m1) and emax its
exponent, floor(log2(top)).

    reach   amax / reach of the grid, no power of two
    ocp     2^(floor(log2 amax) - emax): OCP Microscaling Formats 1.0, section 6.3. Magnitudes
            between top and 2^(emax + 1) scales are clipped
    even    as ocp, but amax is first rounded to the digits of the element, so that what would be
            clipped by half a step or more takes the next power (AMD Quark, compressed-tensors)
    rceil   2^ceil(log2(amax / top)): the smallest power of two that clips nothing (NVIDIA's MXFP8
            recipe; ZeroQuant-FP's M1, arXiv:2307.09782)
    rms     root of the mean square, not of the largest: for grids of numbers of unit variance
    msfp    2^(ceil(log2 amax) - emax - 1): the block floating point of MSFP, LQER and MASE. On
            integers it differs from ocp only where amax is a power of two, which is clipped

MXINT in the code of QERA (arXiv:2410.06040) is ocp on the sign-magnitude grid e1m(bits - 2), in
MASE msfp on intN, and block_fp of LQER msfp on e1m(bits - 2).
"""

from collections.abc import Callable
from math import floor, frexp, log2

import torch
from jaxtyping import Float
from torch import Tensor

from pennyweight.core import Format, Grid


def top(grid: Grid) -> float:
    """The largest magnitude that has a code of either sign, in units of the scale."""
    return min(grid.highest - grid.middle, grid.middle - grid.lowest)


def power_of_two(exponent: Tensor) -> Float[Tensor, "..."]:
    """2^exponent, exactly; exponents beyond those of e8m0 (-127 to 127) go to its ends."""
    return (exponent.clamp(-127, 127) + 127).to(torch.uint8).view(torch.float8_e8m0fnu).float()


def _reach(amax: Tensor, grid: Grid) -> Tensor:
    return amax / grid.reach


def _ocp(amax: Tensor, grid: Grid) -> Tensor:
    return power_of_two(_floor_log2(amax) - _emax(grid))


def _even(amax: Tensor, grid: Grid) -> Tensor:
    last = grid.encode(torch.tensor(grid.middle + top(grid)))
    step = grid.decode(last) - grid.decode(last - 1)  # the top step: both are codes in order
    fraction, _ = torch.frexp(amax)
    up = 2 * fraction >= 2 - step / 2 ** (_emax(grid) + 1)
    return power_of_two(_floor_log2(amax) + up.to(torch.int32) - _emax(grid))


def _rceil(amax: Tensor, grid: Grid) -> Tensor:
    # Fractions lie in [0.5, 1), so their ratio is over 1 exactly where one more power is needed.
    (fraction, exponent), (top_fraction, top_exponent) = torch.frexp(amax), frexp(top(grid))
    return power_of_two(exponent - top_exponent + (fraction > top_fraction).to(torch.int32))


def _msfp(amax: Tensor, grid: Grid) -> Tensor:
    fraction, exponent = torch.frexp(amax)
    ceil_log2 = exponent - (fraction == 0.5).to(torch.int32)
    return power_of_two(ceil_log2 - _emax(grid) - 1)


def _floor_log2(amax: Tensor) -> Tensor:
    return torch.frexp(amax).exponent - 1


def _emax(grid: Grid) -> int:
    return floor(log2(top(grid)))


def root_mean_square(blocks: Tensor) -> Tensor:
    """Of each group of `blocked` weights, in units of its largest so that no square under- or
    overflows."""
    amax = blocks.abs().amax((1, 3), keepdim=True)
    unit = blocks / amax.where(amax > 0, 1.0)
    return amax[:, 0, :, 0] * unit.square().mean((1, 3)).sqrt()


RANGES: dict[str, Callable[[Tensor, Grid], Tensor]] = {
    "reach": _reach, "ocp": _ocp, "even": _even, "rceil": _rceil, "msfp": _msfp,
}  # fmt: skip


def unclipped(amax: Float[Tensor, "..."], format: Format) -> Float[Tensor, "..."]:
    """The scale of an activation, whose peaks count: engines divide by the largest positive code,
    127 of int8 and not the 127.5 that a weight's range reaches."""
    if format.range == "reach":
        return amax / top(format.grid)
    return RANGES[format.range](amax, format.grid)
