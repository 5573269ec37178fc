"""Round to nearest: the baseline every other algorithm has to beat."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from pennyweight.core import Format, Quantized, Stats
from pennyweight.formats.rounding import round_to_nearest
from pennyweight.quantize.base import quantizer


@quantizer("rtn")
@dataclass(frozen=True, kw_only=True)
class RTN:
    """Round to nearest within each group's full range; needs no calibration data."""

    needs: ClassVar[frozenset[str]] = frozenset()
    source: ClassVar[str] = "the baseline; no paper"

    def __call__(self, weight: Float[Tensor, "out in"], format: Format, stats: Stats) -> Quantized:
        return Quantized(weight=round_to_nearest(weight, format))
