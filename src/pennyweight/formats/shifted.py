"""Scales that are powers of two, or a factor of the row times powers of two: fp4 becomes fp8 by
shifts.

    W4A8_fp4_g<n>_pow2      the scale of a group is 2^ceil(log2 s), in one byte, s being what clips
                            nothing (M1; weight only it is MXFP4A16_g<n>_rceil)
    W4A<8|16>_fp4_g<n>_shift[_down]
                            s_max / 2^k: the largest s of the row in float32, and k of each group
                            (M2)

With fp8 inputs a kernel adds to the exponents of fp4, multiplies in fp8, and scales once for each
row: 64 / 2^k times a number of e2m1 is one of e4m3 for every k here, 0 to 14.

ZeroQuant-FP, Wu et al. 2023, https://arxiv.org/abs/2307.09782, section 3. Its M2 shares s_max over
any group of scales; here they are those of a row, because rows are solved one without the other,
and an output has to be scaled anyway. Its k is, as we know it, ceil(log2(s_max / s)): `_down` makes
scales smaller and so clips up to half the range. Without that, k is rounded the other way and
nothing is clipped, as with M1; on real weights only this is better than M1.
"""

import re
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from pennyweight.core import ActivationFormat, Format, Scheme
from pennyweight.formats.base import GRIDS

NAME = re.compile(
    r"W4A(?P<inputs>8|16)_fp4_g(?P<group>[1-9]\d{0,5})_(?P<kind>pow2|shift)(?P<down>_down)?"
)


@dataclass(frozen=True)
class Powers:
    """0 and the powers of two from 1 down, as many as there are codes. For scales: a value goes to
    the power above it (below it, if `down`) and not to the nearest."""

    bits: int
    down: bool = False

    @property
    def name(self) -> str:
        return f"pow2_{self.bits}{'_down' if self.down else ''}"

    @property
    def lowest(self) -> float:
        return 0.0

    @property
    def highest(self) -> float:
        return 1.0

    @property
    def middle(self) -> float:
        return 0.0

    @property
    def reach(self) -> float:
        return 1.0

    def encode(self, value: Float[Tensor, "..."]) -> UInt8[Tensor, "..."]:
        mantissa, exponent = torch.frexp(value)  # of 0.5 to 1, so a power of two has 0.5
        power = exponent - 1 if self.down else exponent - (mantissa == 0.5).to(torch.int32)
        codes = (power + 2**self.bits - 1).clamp(0 if self.down else 1, 2**self.bits - 1)
        return codes.where(value > 0, 0).to(torch.uint8)

    def decode(self, codes: UInt8[Tensor, "..."]) -> Float[Tensor, "..."]:
        power = torch.exp2(codes.float() - (2**self.bits - 1))
        return power.where(codes > 0, 0.0)

    def nearest_(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return value.copy_(self.decode(self.encode(value)))


for down in (False, True):
    GRIDS.register(Powers(4, down).name)(Powers(4, down))


def shifted(group_size: int, down: bool = False) -> Format:
    """4 + 4 / group_size + 32 / in_features bits per weight, and padding."""
    level = Format(grid=GRIDS[Powers(4, down).name], scale=torch.float32)
    return Format(grid=GRIDS["e2m1"], group_size=group_size, scale=level)


def scheme(match: re.Match[str], _: torch.dtype) -> Scheme | None:
    powers, with_inputs = match["kind"] == "pow2", match["inputs"] == "8"
    if powers and (match["down"] or not with_inputs):
        return None
    group = int(match["group"])
    weight = shifted(group, bool(match["down"]))
    if powers:
        e8m0 = torch.float8_e8m0fnu
        weight = Format(grid=GRIDS["e2m1"], group_size=group, scale=e8m0, range="rceil")
    inputs = ActivationFormat(format=Format(grid=GRIDS["e4m3"], scale=torch.float32))
    return Scheme(name=match[0], weight=weight, activation=inputs if with_inputs else None)
