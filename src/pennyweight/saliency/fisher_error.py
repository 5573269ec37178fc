"""Second order: the loss that rounding costs, by the Fisher diagonal."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from pennyweight.core import Format, Stats
from pennyweight.saliency.base import saliency, squared_rounding_error


@saliency("fisher_error")
@dataclass(frozen=True, kw_only=True)
class FisherError:
    """g^2 dq^2: the loss that rounding costs to second order, by the Fisher diagonal."""

    needs: ClassVar[frozenset[str]] = frozenset({"squared_gradient"})
    source: ClassVar[str] = "SqueezeLLM: Kim et al. 2023, arXiv:2306.07629"

    def __call__(
        self, weight: Float[Tensor, "out in"], format: Format, stats: Stats
    ) -> Float[Tensor, "out in"]:
        return stats.require("squared_gradient") * squared_rounding_error(weight, format)
