"""HIGGS: rotate each group until it looks Gaussian, then take the nearest point of the best grid.

Malinovskii et al. 2024, https://arxiv.org/abs/2411.17525, algorithm 1

The rotation, the grids and the scale (a group's norm) are the format (`formats.gauss`), so this is
rounding to nearest in it. What differs from the authors' code: the rotation runs over the group
that shares a scale, as in the paper, where the code rotates 1024 weights and scales 256; the signs
are one fixed pattern for all groups.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from pennyweight.core import Format, FormatError, Quantized, Stats
from pennyweight.formats.gauss import Rotated
from pennyweight.formats.rounding import round_to_nearest
from pennyweight.quantize.base import quantizer


@quantizer("higgs")
@dataclass(frozen=True, kw_only=True)
class HIGGS:
    """Rotated groups on Gaussian grids; data-free."""

    needs: ClassVar[frozenset[str]] = frozenset()
    source: ClassVar[str] = "Malinovskii et al. 2024, arXiv:2411.17525"

    def check_format(self, format: Format) -> None:
        if not isinstance(format.grid, Rotated):
            raise FormatError(
                f"higgs rounds rotated groups, which {format.name} has none of; use a scheme like "
                "W4A16_higgs_g256"
            )

    def __call__(self, weight: Float[Tensor, "out in"], format: Format, stats: Stats) -> Quantized:
        self.check_format(format)
        return Quantized(weight=round_to_nearest(weight, format))
