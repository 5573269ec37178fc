"""QoQ's progressive rounding: rows to int8, then groups of these integers to 4 bits.

Lin et al. 2024 (QServe), https://arxiv.org/abs/2405.04532, section 4.1

Rows are rounded to -119 .. 119 and not to 127: a group's step is at most round(238 / 15) = 16, so
nearest rounding moves an integer by at most 8, and 119 + 8 still fits int8. The authors search no
range by default (their clip search judges output error with recomputed layers, and ships switched
off); `clip = "mse"` shrinks a group's range where that lowers its squared error.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from pennyweight.core import Format, NumericalError, Quantized, Stats, blocked
from pennyweight.formats.clipping import fractions
from pennyweight.formats.dual_grained import require_dual_grained, store_row_scale, with_row_scale
from pennyweight.formats.rounding import round_to_nearest
from pennyweight.quantize.base import quantizer

PROTECTIVE = 119  # the largest magnitude of the int8 rows


@quantizer("qoq")
@dataclass(frozen=True, kw_only=True)
class QoQ:
    """Progressive rounding to dual-grained weights: int8 rows, then 4-bit groups; data-free."""

    clip: Literal["none", "mse"] = "none"
    smallest: float = 0.5  # fraction of a group's range at which `clip = "mse"` starts
    steps: int = 20
    needs: ClassVar[frozenset[str]] = frozenset()
    source: ClassVar[str] = "Lin et al. 2024, arXiv:2405.04532"

    def check_format(self, format: Format) -> None:
        require_dual_grained(format, "qoq")

    def __call__(self, weight: Float[Tensor, "out in"], format: Format, stats: Stats) -> Quantized:
        """Raises FormatError for a format that is not dual-grained, NumericalError on NaN or
        Inf."""
        self.check_format(format)
        if not bool(weight.isfinite().all()):
            raise NumericalError("weight holds NaN or Inf, which no code can stand for")
        integers, row = int8_rows(weight.float(), format)
        k, zero = self._groups(weight / row, integers, format)
        scale = with_row_scale(k * row, row, format)
        # integers * row is exact, and so is its quotient by k * row: nothing is rounded in between.
        return Quantized(weight=round_to_nearest(integers * row, format, scale, zero))

    def _groups(self, wanted: Tensor, integers: Tensor, format: Format) -> tuple[Tensor, Tensor]:
        """(k, zero_point) [out, groups]; the loss is against the weight before its first
        rounding."""
        groups = format.groups(*integers.shape)
        blocks, wanted = blocked(integers, groups), blocked(wanted, groups)
        trials = list(self._trials(blocks, format))
        (best, best_zero), *others = trials
        best_loss = _loss(wanted, blocks, best, best_zero, format)
        for k, zero in others:
            loss = _loss(wanted, blocks, k, zero, format)
            better = loss < best_loss
            best_loss = loss.where(better, best_loss)
            best, best_zero = k.where(better, best), zero.where(better, best_zero)
        return best, best_zero

    def _trials(self, blocks: Tensor, format: Format) -> Iterator[tuple[Tensor, Tensor]]:
        low, high = blocks.amin((1, 3)).clamp(max=0), blocks.amax((1, 3)).clamp(min=0)
        clipped = fractions(self.smallest, self.steps) if self.clip == "mse" else []
        for fraction in [1.0, *clipped]:
            k = (fraction * (high - low) / format.grid.highest).round().clamp(min=1)
            yield k, (-fraction * low / k).round().clamp(max=format.grid.highest)


def int8_rows(
    weight: Float[Tensor, "out in"], format: Format
) -> tuple[Float[Tensor, "out in"], Float[Tensor, "out 1"]]:
    """(whole numbers of -119 .. 119, row scale): the first of the two roundings."""
    row = store_row_scale(weight.abs().amax(1, keepdim=True) / PROTECTIVE, format)
    return (weight / row).round().clamp(-PROTECTIVE, PROTECTIVE), row


def _loss(wanted: Tensor, blocks: Tensor, k: Tensor, zero: Tensor, format: Format) -> Tensor:
    """Squared error of each group, in steps of the row."""
    k, zero = k[:, None, :, None], zero[:, None, :, None]
    steps = (blocks / k).round().clamp(-zero, format.grid.highest - zero)
    return (steps * k - wanted).square().sum((1, 3))
