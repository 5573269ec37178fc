"""First order Taylor: what the loss would lose with the weight itself."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from pennyweight.core import Format, Stats
from pennyweight.saliency.base import saliency


@saliency("gradient_weight")
@dataclass(frozen=True, kw_only=True)
class GradientWeight:
    """|g w|, summed over samples: what the loss moves to first order without the weight."""

    needs: ClassVar[frozenset[str]] = frozenset({"abs_gradient"})
    source: ClassVar[str] = "Molchanov et al. 2017, arXiv:1611.06440"

    def __call__(
        self, weight: Float[Tensor, "out in"], format: Format, stats: Stats
    ) -> Float[Tensor, "out in"]:
        return stats.require("abs_gradient") * weight.abs()
