"""Shrink each group's range to the fraction that minimises its squared error."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from pennyweight.core import Format, Quantized, Stats
from pennyweight.formats.clipping import fractions, search_range
from pennyweight.formats.rounding import require_scale, round_to_nearest
from pennyweight.quantize.base import quantizer


@quantizer("mse_clip")
@dataclass(frozen=True, kw_only=True)
class MSEClip:
    """Round to nearest after clipping each group where that lowers its squared error."""

    smallest: float = 0.5  # fraction of the full range at which the search starts
    steps: int = 20
    needs: ClassVar[frozenset[str]] = frozenset()
    source: ClassVar[str] = (
        "grid search over clipping thresholds, as in the GPTQ code's `mse` option"
    )

    def check_format(self, format: Format) -> None:
        require_scale(format)

    def __call__(self, weight: Float[Tensor, "out in"], format: Format, stats: Stats) -> Quantized:
        trials = fractions(self.smallest, self.steps)
        scale, zero_point = search_range(weight, format, fractions=trials)
        return Quantized(weight=round_to_nearest(weight, format, scale, zero_point))
