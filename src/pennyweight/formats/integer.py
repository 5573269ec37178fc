"""Uniform integers: codes 0 .. 2^bits - 1 that stand for themselves."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from pennyweight.formats.base import GRIDS


@dataclass(frozen=True)
class Integer:
    """The symmetric zero point is 2^(bits - 1), so that code - middle is the signed integer."""

    bits: int

    @property
    def name(self) -> str:
        return f"int{self.bits}"

    @property
    def lowest(self) -> float:
        return 0.0

    @property
    def highest(self) -> float:
        return float(2**self.bits - 1)

    @property
    def middle(self) -> float:
        return float(2 ** (self.bits - 1))

    @property
    def reach(self) -> float:
        # One value more lies below zero than above, so half of all steps on either side: the
        # largest positive weight is clipped by half a step, which rounding may cost anyway.
        return (self.highest - self.lowest) / 2

    def encode(self, value: Float[Tensor, "..."]) -> UInt8[Tensor, "..."]:
        return value.round().clamp_(self.lowest, self.highest).to(torch.uint8)

    def decode(self, codes: UInt8[Tensor, "..."]) -> Float[Tensor, "..."]:
        return codes.to(torch.float32)

    def nearest_(self, value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return value.round_().clamp_(self.lowest, self.highest)


for bits in range(2, 9):
    GRIDS.register(f"int{bits}")(Integer(bits))
