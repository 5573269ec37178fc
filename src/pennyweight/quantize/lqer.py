"""LQER: the error of rounding as a matrix of low rank, channels weighted by their mean |x|.

Zhang et al. 2024, https://arxiv.org/abs/2402.02446

What differs from the authors' code: the size of a channel is mean |x| over all tokens, where theirs
is the largest such mean of any batch; their normalisation and clamping of it, which the solution
used here does not need, are left out. L2QER, with its factors in 8 bits, is `factors = "int8"`,
with a scale per row where the authors share exponents.
"""

from dataclasses import dataclass
from typing import ClassVar

from pennyweight.core import Mapper, Stats
from pennyweight.quantize.base import quantizer
from pennyweight.quantize.corrected import Corrected
from pennyweight.quantize.low_rank import Measure, diagonal


@quantizer("lqer")
@dataclass(frozen=True, kw_only=True)
class LQER(Corrected):
    """Low-rank correction weighted by mean |x| of each channel."""

    source: ClassVar[str] = "Zhang et al. 2024, arXiv:2402.02446"

    @property
    def observed(self) -> frozenset[str]:
        return frozenset({"abs_sum"})

    def measure(self, stats: Stats, workers: Mapper) -> Measure:
        size = stats.require("abs_sum") / max(stats.tokens, 1)
        return diagonal(size.double().square())
