"""A linear that computes as its scheme says: quantized weight, and input rounded as it would be
served."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from pennyweight.core import ActivationFormat, Format, NumericalError, QTensor, blocked, plain
from pennyweight.formats.ranges import top, unclipped
from pennyweight.formats.rounding import lift, round_to_nearest, snap


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
    flat, format = x.reshape(-1, x.shape[-1]).float(), activation.format
    if not activation.dynamic:
        assert scale is not None, "a static activation format needs a calibrated scale"
    if not bool(flat.isfinite().all()):
        raise NumericalError("an activation that is to be rounded holds NaN or Inf")
    used: Tensor | QTensor | None = scale
    if activation.dynamic:
        used = _scales(flat, format)
    elif isinstance(format.scale, Format):
        # Of several levels, the one that is fixed is the tensor's; those below it are dynamic.
        used = lift(round_to_nearest(_scales(flat, format), format.scale, scale))
    return round_to_nearest(flat, format, used).dequantize().view(x.shape).to(x.dtype)


def _scales(flat: Float[Tensor, "tokens in"], format: Format) -> Float[Tensor, "tokens groups"]:
    blocks = blocked(flat.abs(), format.groups(*flat.shape))
    return unclipped(blocks.amax((1, 3)), format)


def static_input_scale(
    absmax: Float[Tensor, " in"], activation: ActivationFormat
) -> Float[Tensor, "1 1"]:
    """The [1, 1] scale under which the largest calibrated input is just representable.

    Of a format of several levels it is the innermost scale, which the whole tensor shares. Rounded
    to the dtype in which it will be stored, so that what is computed with is what is served.
    """
    scale, format = absmax.max().view(1, 1), activation.format
    while isinstance(format.scale, Format):
        scale, format = scale / top(format.grid), format.scale
    stored, _ = snap(unclipped(scale, format), None, format)
    return plain(stored)
