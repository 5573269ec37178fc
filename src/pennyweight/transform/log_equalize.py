"""Logarithmic equalization of activations.

Li et al. 2023 (FPTQ), https://arxiv.org/abs/2308.15987, section 3
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from pennyweight.transform.base import Consumers, transform


@transform("log_equalize")
@dataclass(frozen=True, kw_only=True)
class LogEqualize:
    """s = absmax / log2(2 + absmax): loud channels are pressed together, quiet ones grow to 1.

    The policy by range of the paper (which layers get it, which are dynamic) is left to the rules
    of the recipe.
    """

    least: float = 1e-5
    needs: ClassVar[frozenset[str]] = frozenset({"absmax"})
    source: ClassVar[str] = "Li et al. 2023 (FPTQ), arXiv:2308.15987"

    def __call__(self, consumers: Consumers) -> Float[Tensor, " in"]:
        absmax = consumers.stats.require("absmax").clamp(min=self.least)
        return absmax / (2 + absmax).log2()
