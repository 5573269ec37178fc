"""LoRC: the error of rounding as a matrix of low rank, by its plain singular values.

Yao et al. 2023 (ZeroQuant-V2), https://arxiv.org/abs/2303.08302, section 5
"""

from dataclasses import dataclass
from typing import ClassVar

from pennyweight.core import Mapper, Stats
from pennyweight.quantize.base import quantizer
from pennyweight.quantize.corrected import Corrected
from pennyweight.quantize.low_rank import Measure


@quantizer("lorc")
@dataclass(frozen=True, kw_only=True)
class LoRC(Corrected):
    """Low-rank correction of the weight error; data-free."""

    rank: int = 8
    source: ClassVar[str] = "ZeroQuant-V2: Yao et al. 2023, arXiv:2303.08302"

    def measure(self, stats: Stats, workers: Mapper) -> Measure:
        return lambda block: block
