"""Size: the baseline, and what is left where nothing was observed."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from pennyweight.core import Format, Stats
from pennyweight.saliency.base import saliency


@saliency("magnitude")
@dataclass(frozen=True, kw_only=True)
class Magnitude:
    """|w|."""

    needs: ClassVar[frozenset[str]] = frozenset()
    source: ClassVar[str] = "the baseline; no paper"

    def __call__(
        self, weight: Float[Tensor, "out in"], format: Format, stats: Stats
    ) -> Float[Tensor, "out in"]:
        return weight.abs()
