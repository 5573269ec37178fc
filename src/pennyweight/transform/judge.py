"""What a scale does to the output error of the linears that read the tensor."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from pennyweight.core import Scheme
from pennyweight.formats.rounding import round_to_nearest
from pennyweight.model.linear import round_activation, static_input_scale
from pennyweight.transform.base import Consumers

ROWS = 256  # outputs of each linear that are looked at


def output_error(consumers: Consumers, scale: Float[Tensor, " in"]) -> float:
    """Squared error of the outputs on `consumers.inputs`, over all linears, rounded to nearest.

    Relative to the squared outputs of each linear, so that none drowns the others.
    """
    total = 0.0
    for weight, scheme in zip(consumers.weights, consumers.schemes, strict=True):
        if scheme is not None:
            rows = torch.linspace(0, len(weight) - 1, min(ROWS, len(weight))).long()
            total += _error(weight[rows], scheme, consumers, scale)
    return total


def _error(weight: Tensor, scheme: Scheme, consumers: Consumers, scale: Tensor) -> float:
    wanted = consumers.inputs @ weight.T
    inputs = consumers.inputs / scale
    activation = scheme.activation
    if activation is not None:
        fixed = None
        if not activation.dynamic:
            seen = consumers.stats.absmax
            absmax = inputs.abs().amax(0) if seen is None else seen / scale
            fixed = static_input_scale(absmax, activation)
        inputs = round_activation(inputs, activation, fixed)
    # A scale that spans the whole tensor is found on the rows at hand: a little too small at worst.
    rounded = round_to_nearest(weight * scale, scheme.weight).dequantize()
    error, signal = (inputs @ rounded.T - wanted).square().sum(), wanted.square().sum()
    return (error / signal).item() if signal > 0 else 0.0
