"""The diagonal of the empirical Fisher information."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from pennyweight.core import Format, Stats
from pennyweight.saliency.base import saliency


@saliency("fisher")
@dataclass(frozen=True, kw_only=True)
class Fisher:
    """g^2, summed over samples: the diagonal of the empirical Fisher information."""

    needs: ClassVar[frozenset[str]] = frozenset({"squared_gradient"})
    source: ClassVar[str] = "SqueezeLLM: Kim et al. 2023, arXiv:2306.07629"

    def __call__(
        self, weight: Float[Tensor, "out in"], format: Format, stats: Stats
    ) -> Float[Tensor, "out in"]:
        return stats.require("squared_gradient")
