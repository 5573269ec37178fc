"""QERA: the matrix of low rank that leaves the least expected error of the layer's output.

Zhang et al. 2024, https://arxiv.org/abs/2410.06040

What differs from the authors' code: no square root of E[x x^T] and no inverse of it is computed
(`quantize.low_rank` says why), so nothing has to be clamped.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from pennyweight.core import Mapper, Stats
from pennyweight.quantize.base import quantizer
from pennyweight.quantize.corrected import Corrected
from pennyweight.quantize.low_rank import Measure, diagonal, full


@quantizer("qera")
@dataclass(frozen=True, kw_only=True)
class QERA(Corrected):
    """Low-rank correction of least expected output error."""

    inputs: Literal["exact", "diagonal"] = "exact"  # all of E[x x^T], or E[x^2] of each channel
    source: ClassVar[str] = "Zhang et al. 2024, arXiv:2410.06040"

    @property
    def observed(self) -> frozenset[str]:
        return frozenset({"gram" if self.inputs == "exact" else "square_sum"})

    def measure(self, stats: Stats, workers: Mapper) -> Measure:
        (field,) = self.observed
        seen = stats.require(field) / max(stats.tokens, 1)
        return full(seen, workers) if self.inputs == "exact" else diagonal(seen)
