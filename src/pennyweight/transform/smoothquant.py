"""SmoothQuant: move the range of an input's loud channels into the weights.

Xiao et al. 2022, https://arxiv.org/abs/2211.10438, section 4
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pennyweight.transform.base import Consumers, transform


@transform("smoothquant")
@dataclass(frozen=True, kw_only=True)
class SmoothQuant:
    """s = absmax(x)^alpha / absmax(w)^(1 - alpha), channel by channel.

    absmax as in the paper; llm-compressor takes the range, max - min.
    """

    alpha: float = 0.5  # 1 moves all of the difficulty into the weights
    least: float = 1e-5  # floor of both ranges: a channel that saw nothing must not divide by zero
    needs: ClassVar[frozenset[str]] = frozenset({"absmax"})
    source: ClassVar[str] = "Xiao et al. 2022, arXiv:2211.10438"

    def __call__(self, consumers: Consumers) -> Float[Tensor, " in"]:
        inputs = consumers.stats.require("absmax").clamp(min=self.least)
        weights = weight_absmax(consumers).clamp(min=self.least)
        return (inputs**self.alpha / weights ** (1 - self.alpha)).clamp(min=self.least)


def weight_absmax(consumers: Consumers) -> Float[Tensor, " in"]:
    """Largest |w| of each column over all the linears."""
    return torch.stack([weight.abs().amax(0) for weight in consumers.weights]).amax(0)
