"""Keep the columns whose inputs grow largest, the same for every linear that reads that input.

Ashkboos et al. 2023, https://arxiv.org/abs/2310.09259
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool, Float
from torch import Tensor

from pennyweight.core import Format, Mapper, Quantized, Serial, Stats
from pennyweight.quantize.base import quantizer
from pennyweight.quantize.columns import (
    column_bytes,
    keep_columns,
    prepare_columns,
    solve_around_columns,
)  # fmt: skip
from pennyweight.quantize.gptq import GPTQ
from pennyweight.saliency.select import Share


@quantizer("quik")
@dataclass(frozen=True, kw_only=True)
class QUIK:
    """Keep the columns with the largest inputs in 16 bits, GPTQ on the others.

    The authors keep 256 columns of 4096 and compute with the rest of the input in 4 bits, which is
    the scheme's part. They set layers without outliers and down_proj apart; here that is a rule.
    """

    share: Share = 0.0625  # of the columns
    damp: float = 0.01  # as in gptq
    act_order: bool = True  # of the columns that are not kept
    needs: ClassVar[frozenset[str]] = frozenset({"gram", "absmax"})
    source: ClassVar[str] = "Ashkboos et al. 2023, arXiv:2310.09259"

    def check_format(self, format: Format) -> None:
        self._gptq.check_format(format)

    def select(
        self, weight: Float[Tensor, "out in"], format: Format, stats: Stats, workers: Mapper
    ) -> Bool[Tensor, "out in"]:
        return keep_columns(weight, stats.require("absmax"), self.share)

    def added_bytes(self, shape: tuple[int, int], format: Format) -> int:
        return column_bytes(shape, self.share, format)

    def prepare(self, stats: Stats, workers: Mapper) -> None:
        prepare_columns(self._gptq, stats, workers)

    def __call__(self, weight: Float[Tensor, "out in"], format: Format, stats: Stats) -> Quantized:
        """Chooses for itself where `stats` does not say what to keep."""
        keep = self.select(weight, format, stats, Serial()) if stats.keep is None else stats.keep
        return solve_around_columns(self._gptq, weight, format, stats, keep)

    @property
    def _gptq(self) -> GPTQ:
        return GPTQ(damp=self.damp, act_order=self.act_order)
