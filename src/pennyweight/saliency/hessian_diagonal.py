"""Second order in the layer's output, column by column."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from pennyweight.core import Format, Stats
from pennyweight.saliency.base import saliency, squared_rounding_error


@saliency("hessian_diagonal")
@dataclass(frozen=True, kw_only=True)
class HessianDiagonal:
    """H_jj dq^2: the output error of rounding this weight alone."""

    needs: ClassVar[frozenset[str]] = frozenset({"gram"})
    source: ClassVar[str] = "OWQ: Lee et al. 2023, arXiv:2306.02272"

    def __call__(
        self, weight: Float[Tensor, "out in"], format: Format, stats: Stats
    ) -> Float[Tensor, "out in"]:
        return stats.require("gram").diagonal() * squared_rounding_error(weight, format)
