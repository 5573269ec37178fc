"""A linear that computes as its scheme says: quantized weight, and input rounded as it would be
served."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pennyweight.core import ActivationFormat, NumericalError
from pennyweight.formats.rounding import round_to_nearest


class QuantizedLinear(nn.Linear):
    """y = round(x) @ weight^T + bias, with weight already dequantized.

    input_scale: [1, 1], of a static activation format; None for a dynamic one.
    """

    def __init__(
        self,
        weight: Float[Tensor, "out in"],
        bias: Tensor | None,
        activation: ActivationFormat,
        input_scale: Tensor | None = None,
    ) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
        self.weight = nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            self.bias = nn.Parameter(bias, requires_grad=False)
        self.activation, self.input_scale = activation, input_scale

    def forward(self, input: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        return super().forward(round_activation(input, self.activation, self.input_scale))


def round_activation(
    x: Float[Tensor, "... in"], activation: ActivationFormat, scale: Tensor | None
) -> Float[Tensor, "... in"]:
    """x as its codes stand for it, in x's dtype."""
    flat = x.reshape(-1, x.shape[-1]).float()
    if not activation.dynamic:
        assert scale is not None, "a static activation format needs a calibrated scale"
    if not bool(flat.isfinite().all()):
        raise NumericalError("an activation that is to be rounded holds NaN or Inf")
    if activation.dynamic:
        # Engines divide by the largest positive code, 127: no token's peak is clipped.
        scale = flat.abs().amax(1, keepdim=True) / _reach(activation)
    rounded = round_to_nearest(flat, activation.format, scale)
    return rounded.dequantize().view(x.shape).to(x.dtype)


def static_input_scale(
    absmax: Float[Tensor, " in"], activation: ActivationFormat, dtype: torch.dtype
) -> Float[Tensor, "1 1"]:
    """The [1, 1] scale under which the largest calibrated input is just representable.

    Rounded to `dtype`, in which it will be stored, so that what is computed with is what is served.
    """
    limit = torch.finfo(dtype)
    scale = (absmax.max() / _reach(activation)).clamp(limit.smallest_normal, limit.max)
    return scale.view(1, 1).to(dtype).float()


def _reach(activation: ActivationFormat) -> float:
    """The largest magnitude that has a code of either sign, in steps."""
    grid = activation.format.grid
    return min(grid.highest - grid.middle, grid.middle - grid.lowest)
