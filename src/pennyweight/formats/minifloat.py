"""Small floating-point numbers with any split of 3 to 8 bits into exponent and mantissa.

A code is the raw bit pattern: sign, exponent, mantissa. The bias is 2^(exponent bits - 1) - 1, the
lowest exponent holds the subnormals, rounding is to nearest with ties to the even code, and what
lies beyond the largest number goes to it (saturates).

Sources: OCP 8-bit Floating Point Specification 1.0 (E4M3, E5M2); OCP Microscaling Formats
Specification 1.0, section 5.3 (FP6, FP4); E3M4 with its maximum of 30: Shen et al. 2023,
arXiv:2309.14592.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from pennyweight.formats.base import GRIDS

Specials = Literal["none", "nan", "ieee"]
SPECIALS: dict[str, Specials] = {"e4m3": "nan", "e3m4": "nan", "e5m2": "ieee"}
MANTISSA, BIAS = 23, 127  # of float32
EXPONENT = 0x7F800000  # the bits of float32 that hold it


@dataclass(frozen=True)
class Minifloat:
    """Values are taken in float32. Codes of specials decode to NaN or Inf and are never produced.

    specials: "none": every code is a finite number; "nan": the last code of either sign is NaN, as
    in E4M3; "ieee": the whole highest exponent is Inf and NaN, as in E5M2.
    """

    exponent_bits: int
    mantissa_bits: int
    specials: Specials = "none"

    @property
    def name(self) -> str:
        return f"e{self.exponent_bits}m{self.mantissa_bits}"

    @property
    def bits(self) -> int:
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def lowest(self) -> float:
        return -self.highest

    @property
    def highest(self) -> float:
        taken = {"none": 0, "nan": 1, "ieee": 2**self.mantissa_bits}[self.specials]
        exponent, mantissa = divmod(2 ** (self.bits - 1) - 1 - taken, 2**self.mantissa_bits)
        return (2**self.mantissa_bits + mantissa) * self._step * 2.0 ** (exponent - 1)

    @property
    def middle(self) -> float:
        return 0.0

    @property
    def reach(self) -> float:
        return self.highest

    @property
    def _lowest_exponent(self) -> int:
        return 2 - 2 ** (self.exponent_bits - 1)

    @property
    def _step(self) -> float:
        """Between two subnormals, and between two of the smallest normal numbers."""
        return 2.0 ** (self._lowest_exponent - self.mantissa_bits)

    def encode(self, value: Float[Tensor, "..."]) -> UInt8[Tensor, "..."]:
        value = value.float()
        count = value.abs().clamp_(max=self.highest)
        binade = self._binade(count)
        count.div_(binade).mul_(2.0**self.mantissa_bits).round_()
        # Of a normal number the count holds the leading one, which is one step of the exponent; a
        # count that was rounded up to the next power of two therefore carries into it by itself.
        exponent = binade.view(torch.int32).bitwise_right_shift_(MANTISSA)
        exponent.sub_(BIAS + self._lowest_exponent).bitwise_left_shift_(self.mantissa_bits)
        code = count.to(torch.uint8).add_(exponent.to(torch.uint8))
        return code.add_(value.signbit().to(torch.uint8), alpha=2 ** (self.bits - 1))

    def decode(self, codes: UInt8[Tensor, "..."]) -> Float[Tensor, "..."]:
        return self._table()[codes.to(torch.int32)]

    def nearest_(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        value.clamp_(self.lowest, self.highest)
        step = self._binade(value.float().abs()).mul_(2.0**-self.mantissa_bits)
        return value.div_(step).round_().mul_(step)

    def _binade(self, size: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The power of two at or below each magnitude, not below the smallest normal number."""
        power = (size.view(torch.int32) & EXPONENT).view(torch.float32)
        return power.clamp_(min=2.0**self._lowest_exponent)

    def _table(self) -> Float[Tensor, " codes"]:
        codes = torch.arange(2 ** (self.bits - 1))
        exponent, mantissa = codes >> self.mantissa_bits, codes % 2**self.mantissa_bits
        normal = (exponent > 0).to(torch.int64)
        counts = (mantissa + (normal << self.mantissa_bits)).double()
        sizes = (counts * self._step * torch.exp2((exponent - normal).double())).float()
        sizes[sizes > self.highest] = torch.nan
        if self.specials == "ieee":
            sizes[-(2**self.mantissa_bits)] = torch.inf
        return torch.cat([sizes, -sizes])


for bits in range(3, 9):
    for exponent_bits in range(1, bits - 1):
        name = f"e{exponent_bits}m{bits - 1 - exponent_bits}"
        specials = SPECIALS.get(name, "none")
        GRIDS.register(name)(Minifloat(exponent_bits, bits - 1 - exponent_bits, specials))
