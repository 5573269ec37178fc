"""ApiQ: a low-rank part beside the codes, learned together with the ranges of the groups.

Liao et al. 2024, https://arxiv.org/abs/2402.05147 (block-wise)

    W ~= round(W in the range sigmoid(g_low) min .. sigmoid(g_high) max) + A B

A starts at zero and B at random (uniform in +-1 / sqrt(in)), so that the start is the rounded
weight. Fine-tuning, for which the authors prepare A and B, is left out: here the part stays in the
model.

What differs from the authors' code: float32 throughout; factors are rounded to the checkpoint's
dtype as they are learned; the best epoch on held-out samples is kept, and nothing if that is worse
than the start. Compare at equal bits: the part costs rank * (in + out) numbers of 16 bits.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pennyweight.core import Format, FormatError, LowRank, Quantized
from pennyweight.train.base import Given, Learning, Target, Values, trainer
from pennyweight.train.learned_range import (
    LearnedRange,
    learned_ranges,
    require_bare,
    require_range,
)
from pennyweight.train.loop import number
from pennyweight.train.straight import straight


@dataclass(frozen=True, kw_only=True)
class WithLowRank:
    """A linear with a learned range, and left @ right on top."""

    range: LearnedRange
    left: str  # names of the parameters
    right: str
    dtype: torch.dtype  # of the stored factors

    @property
    def reads(self) -> tuple[str, ...]:
        return (*self.range.reads, self.left, self.right)

    @property
    def task_rows(self) -> int:
        return self.range.task_rows

    def rows(self, values: Values, start: int, stop: int) -> Float[Tensor, "rows in"]:
        left, right = self._stored(values[self.left]), self._stored(values[self.right])
        return self.range.rows(values, start, stop) + left[start:stop] @ right

    def _stored(self, factor: Tensor) -> Tensor:
        return straight(factor, factor.detach().to(self.dtype).to(torch.float32))

    def quantize(self, weight: Float[Tensor, "out in"], values: Values) -> Quantized:
        base = self.range.quantize(weight, values)
        left, right = (values[name].to(self.dtype) for name in (self.left, self.right))
        part = LowRank(left=left, right=right)
        return Quantized(weight=base.weight, corrections=(part,))


@trainer("apiq")
@dataclass(frozen=True, kw_only=True)
class ApiQ:
    """Learned ranges and a learned low-rank part, per block."""

    rank: int = 32  # the authors take 64 for models of billions of parameters
    epochs: int = 20
    batch: int = 1  # samples per step
    held_out: bool = True  # the eighth of the samples that judges is not learned from
    clip_rate: float = 5e-3  # learning rate of the ranges
    part_rate: float = 5e-4  # of the factors
    decay: float = 0.1  # weight decay of all of them
    target: Target = "original"  # output of the original model's block, or of it on same_input
    source: ClassVar[str] = "Liao et al. 2024, arXiv:2402.05147"

    def visits(self, samples: int) -> int:
        return self.epochs * samples

    @property
    def links(self) -> bool:
        return False

    @property
    def linears_alone(self) -> bool:
        return True

    @property
    def loss(self) -> str:
        return "output"

    def check_format(self, format: Format) -> None:
        require_range(format)

    def __call__(self, given: Given) -> Learning:
        """Raises FormatError if a weight has no such rank."""
        require_bare(given, "apiq")
        ranges, start = learned_ranges(given, learn=True)
        rates, weights = dict.fromkeys(start, self.clip_rate), {}
        for name, one in ranges.items():
            rows, width = one.start.weight.shape
            if not 1 <= self.rank <= min(rows, width):
                raise FormatError(
                    f"{given.name}.{name}: a part of rank {self.rank} for a weight of {rows} x "
                    f"{width}; use rank 1 to {min(rows, width)}, or leave it out of the match"
                )
            left, right = f"{name}.left", f"{name}.right"
            generator = torch.Generator().manual_seed(number(given.seed, f"{given.name}.{name}"))
            drawn = torch.rand(self.rank, width, generator=generator)
            start |= {left: torch.zeros(rows, self.rank), right: (2 * drawn - 1) / width**0.5}
            rates |= dict.fromkeys((left, right), self.part_rate)
            dtype = one.start.format.scale
            assert isinstance(dtype, torch.dtype)
            if dtype.itemsize == 1:  # a power of two holds no factor
                dtype = torch.bfloat16
            weights[name] = WithLowRank(range=one, left=left, right=right, dtype=dtype)
        return Learning(start=start, rates=rates, decay=self.decay, weights=weights)
