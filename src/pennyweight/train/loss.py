"""How far the output of a quantized block is from what it should be."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]


def squared_error(
    out: Float[Tensor, "1 tokens hidden"], target: Float[Tensor, "1 tokens hidden"]
) -> Float[Tensor, ""]:
    """Mean over tokens and channels."""
    return (out - target).square().mean()


def channel_statistics(
    out: Float[Tensor, "1 tokens hidden"], target: Float[Tensor, "1 tokens hidden"]
) -> Float[Tensor, ""]:
    """Mean over channels of the squared differences of their means and of their variances, both
    over the tokens of a sample (Norm Tweaking, Li et al. 2023, arXiv:2309.02784, section 3)."""
    mean = (out.mean(1) - target.mean(1)).square()
    variance = (out.var(1, correction=0) - target.var(1, correction=0)).square()
    return (mean + variance).mean()


LOSSES: dict[str, Loss] = {"output": squared_error, "channels": channel_statistics}
