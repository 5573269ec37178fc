"""Half-quadratic quantization: move the zero point to minimise an lp norm of the error, p < 1.

Badri & Shaji 2023, https://mobiusml.github.io/hqq_blog/
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pennyweight.core import Format, QTensor, Quantized, Stats, blocked, plain
from pennyweight.formats.rounding import require_scale, round_to_nearest, snap
from pennyweight.quantize.base import quantizer


@quantizer("hqq")
@dataclass(frozen=True, kw_only=True)
class HQQ:
    """Half-quadratic search of the zero point (of the scale where there is none); data-free.

    The authors store a float zero point. Where the format has none, or one that is a code and moves
    in whole steps, the same splitting also solves for the scale (least squares of weight - error on
    the codes). A trial is kept only where it lowers the group's loss.
    """

    p: float = 0.7  # norm of the error; below 1 it forgives outliers
    beta: float = 10.0  # weight of the penalty, in units of 1 / mean |weight|; grows by `growth`
    growth: float = 1.01
    steps: int = 20
    needs: ClassVar[frozenset[str]] = frozenset()
    source: ClassVar[str] = "Badri & Shaji 2023, mobiusml.github.io/hqq_blog"

    def check_format(self, format: Format) -> None:
        require_scale(format)

    def __call__(self, weight: Float[Tensor, "out in"], format: Format, stats: Stats) -> Quantized:
        self.check_format(format)
        best = trial = round_to_nearest(weight, format)
        if isinstance(format.scale, Format) or isinstance(format.zero_point, Format):
            return Quantized(weight=best)
        best_loss, beta = self.loss(weight, best), self.beta
        for _ in range(self.steps):
            error = shrink(weight - trial.dequantize(), beta, self.p)
            trial = self.step(weight - error, weight, trial)
            loss, beta = self.loss(weight, trial), beta * self.growth
            better = loss < best_loss
            best_loss = loss.where(better, best_loss)
            best = merge(trial, best, better)
        return Quantized(weight=best)

    def step(self, target: Tensor, weight: Tensor, q: QTensor) -> QTensor:
        """Solve for the group's free number with codes and error held, then round again."""
        format, groups = q.format, format_groups(q)
        value = blocked(format.grid.decode(q.codes), groups)
        wanted, scale = blocked(target, groups), plain(q.scale)
        zero_point = None
        if q.zero_point is not None:
            best = (value - wanted / scale[:, None, :, None]).mean((1, 3))
            _, zero_point = snap(scale, best, format)
            if format.zero_point is not torch.uint8:
                return round_to_nearest(weight, format, scale, zero_point)
        middle = format.grid.middle if zero_point is None else plain(zero_point)[:, None, :, None]
        signed = value - middle
        norm = signed.square().sum((1, 3))
        best = (signed * wanted).sum((1, 3)) / norm.where(norm > 0, 1.0)
        return round_to_nearest(weight, format, best.where(best > 0, scale), zero_point)

    def loss(self, weight: Tensor, q: QTensor) -> Tensor:
        """Mean |error|^p of each group."""
        error = (weight - q.dequantize()).abs().pow(self.p)
        return blocked(error, format_groups(q)).mean((1, 3))


def format_groups(q: QTensor) -> tuple[int, int]:
    return q.format.groups(*q.shape)


def merge(new: QTensor, old: QTensor, better: Tensor) -> QTensor:
    """`new` in the groups where it is better, `old` in the others."""
    groups, mask = format_groups(old), better[:, None, :, None]
    codes = blocked(new.codes, groups).where(mask, blocked(old.codes, groups)).view(old.codes.shape)
    pick = lambda a, b: a.where(better, b)
    return QTensor(
        format=old.format, codes=codes, scale=pick(new.scale, old.scale),
        zero_point=None if old.zero_point is None else pick(new.zero_point, old.zero_point),
    )  # fmt: skip


def shrink(x: Tensor, beta: float, p: float) -> Tensor:
    """Generalised soft threshold: the minimiser of |e|^p + beta/2 (e - x)^2, to first order."""
    size = x.abs().clamp(min=1e-8)  # 1e-8: |x|^(p-1) stays finite, and such an error shrinks to 0
    return x.sign() * (size - size.pow(p - 1) / beta).clamp(min=0)
