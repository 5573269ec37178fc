"""Keep the columns whose rounding costs the output most, and solve the others around them.

Lee et al. 2023, https://arxiv.org/abs/2306.02272
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool, Float
from torch import Tensor

from pennyweight.core import Format, Mapper, Quantized, Serial, Stats
from pennyweight.formats.clipping import fractions, search_range
from pennyweight.formats.rounding import round_to_nearest
from pennyweight.quantize.base import quantizer
from pennyweight.quantize.columns import (
    column_bytes,
    keep_columns,
    prepare_columns,
    solve_around_columns,
)  # fmt: skip
from pennyweight.quantize.gptq import GPTQ
from pennyweight.saliency.select import Share


@quantizer("owq")
@dataclass(frozen=True, kw_only=True)
class OWQ:
    """Keep the columns with the largest H_jj |dq_j|^2 in 16 bits, GPTQ on the others.

    The authors choose an even number of columns to meet a number of bits: a share of
    12 / (16 - b) x (bits - b) for b-bit codes, 0.9 % for 3.01 bits. Here the share is the option,
    and the number need not be even.
    """

    share: Share = 0.01  # of the columns
    damp: float = 0.01  # as in gptq
    act_order: bool = True  # of the columns that are not kept
    steps: int = 20  # clipping fractions tried, for the score as for the codes
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})
    source: ClassVar[str] = "Lee et al. 2023, arXiv:2306.02272"

    def check_format(self, format: Format) -> None:
        self._gptq.check_format(format)

    def select(
        self, weight: Float[Tensor, "out in"], format: Format, stats: Stats, workers: Mapper
    ) -> Bool[Tensor, "out in"]:
        diagonal, trials = stats.require("gram").diagonal(), fractions(0.5, self.steps)
        scale, zero_point = search_range(weight, format, fractions=trials)
        error = weight - round_to_nearest(weight, format, scale, zero_point).dequantize()
        return keep_columns(weight, diagonal * error.square_().sum(0), self.share)

    def added_bytes(self, shape: tuple[int, int], format: Format) -> int:
        return column_bytes(shape, self.share, format)

    def prepare(self, stats: Stats, workers: Mapper) -> None:
        prepare_columns(self._gptq, stats, workers)

    def __call__(self, weight: Float[Tensor, "out in"], format: Format, stats: Stats) -> Quantized:
        """Chooses from the rows at hand where `stats` does not say what to keep."""
        keep = self.select(weight, format, stats, Serial()) if stats.keep is None else stats.keep
        return solve_around_columns(self._gptq, weight, format, stats, keep)

    @property
    def _gptq(self) -> GPTQ:
        return GPTQ(damp=self.damp, act_order=self.act_order, steps=self.steps)
