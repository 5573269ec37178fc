"""First order: how steep the loss is."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from pennyweight.core import Format, Stats
from pennyweight.saliency.base import saliency


@saliency("abs_gradient")
@dataclass(frozen=True, kw_only=True)
class AbsGradient:
    """|g|, summed over samples: how much the loss moves with the weight."""

    needs: ClassVar[frozenset[str]] = frozenset({"abs_gradient"})
    source: ClassVar[str] = "GWQ, 2024, arXiv:2411.00850"

    def __call__(
        self, weight: Float[Tensor, "out in"], format: Format, stats: Stats
    ) -> Float[Tensor, "out in"]:
        return stats.require("abs_gradient")
