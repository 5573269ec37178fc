"""Rounding that a gradient passes straight through (Bengio et al. 2013, arXiv:1308.3432), so that
what is computed on the way forward is, bit for bit, what will be stored."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pennyweight.core import ActivationFormat, Format, blocked, plain
from pennyweight.formats.ranges import RANGES
from pennyweight.formats.rounding import positive, snap
from pennyweight.model.backward import Call
from pennyweight.model.linear import QuantizedLinear, round_activation


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, rounded: Tensor) -> Tensor:
        return rounded.view_as(rounded)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        return gradients[0], None


def straight(value: Float[Tensor, "..."], rounded: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """`rounded`, exactly, with the gradient of `value`."""
    return _Straight.apply(value, rounded.detach())  # pyright: ignore[reportReturnType]


def clipped_range(
    weight: Float[Tensor, "rows cols"],
    format: Format,
    low: Float[Tensor, "row_groups groups"],
    high: Float[Tensor, "row_groups groups"],
) -> tuple[Tensor, Tensor | None]:
    """(scale, zero_point) as they are stored, of each group's range shrunk to the fractions `low`
    of its least and `high` of its largest value; of a symmetric format `high` alone counts.

    At fractions of 1 they are what `formats.rounding.fit` finds. Differentiable in the fractions;
    in the weight where the range is "reach" or asymmetric.
    """
    blocks, grid = blocked(weight, format.groups(*weight.shape)), format.grid
    if format.symmetric:
        amax = blocks.abs().amax((1, 3))
        power = format.range != "reach"  # of two: found from exponents, which have no gradient
        full = RANGES[format.range](amax.detach(), grid) if power else amax / grid.reach
        scale = high * full
        return straight(scale, plain(snap(scale.detach(), None, format)[0])), None
    least = low * blocks.amin((1, 3)).clamp(max=0)
    largest = high * blocks.amax((1, 3)).clamp(min=0)
    scale = (largest - least) / (grid.highest - grid.lowest)
    zero_point = grid.lowest - least / positive(scale)
    stored = snap(scale.detach(), zero_point.detach(), format)
    return straight(scale, plain(stored[0])), straight(zero_point, plain(stored[1]))


def round_straight(
    weight: Float[Tensor, "rows cols"], format: Format, scale: Tensor, zero_point: Tensor | None
) -> Float[Tensor, "rows cols"]:
    """The values that the nearest codes stand for. A weight beyond the codes has no gradient, and
    the end of the range that holds it has; scale and zero point must be as they are stored."""
    grid, wide = format.grid, scale[:, None, :, None]
    zero = grid.middle if zero_point is None else zero_point[:, None, :, None]
    value = blocked(weight, format.groups(*weight.shape)) / wide + zero
    value = value.clamp(grid.lowest, grid.highest)
    nearest = straight(value, grid.nearest_(value.detach().clone()))
    return ((nearest - zero) * wide).reshape(weight.shape)


@dataclass
class Tape:
    """What the linears of a block were called with, in each thread, while gradients are taken."""

    _local: threading.local = field(default_factory=threading.local)

    def begin(self) -> tuple[dict[str, list[Call]], list[Tensor]]:
        """(calls of each linear, leaves that need a gradient so that these get theirs)."""
        self._local.calls, self._local.leaves = {}, []
        return self._local.calls, self._local.leaves

    def record(self, name: str, x: Tensor, out: Tensor) -> Tensor:
        call = Call(x.detach().flatten(0, -2))
        self._local.calls.setdefault(name, []).append(call)
        if not out.requires_grad:  # its input does not depend on the block's
            self._local.leaves.append(out := out.detach().requires_grad_())
        out.register_hook(lambda dy: setattr(call, "dy", dy.detach().flatten(0, -2)))
        return out


class StraightLinear(nn.Linear):
    """A linear whose input is rounded straight through, and whose calls are taped.

    The gradient of its weight is dy^T x of all calls, formed a few rows at a time by whoever wants
    it; autograd, which would form it whole for each sample, is not asked for it.
    """

    def __init__(self, linear: nn.Linear, name: str, tape: Tape) -> None:
        """The weight [out, in], float32, is not yet filled in."""
        out, width = linear.weight.shape
        super().__init__(width, out, bias=linear.bias is not None, device="meta")
        self.weight = nn.Parameter(torch.empty(out, width), requires_grad=False)
        if linear.bias is not None:
            self.bias = nn.Parameter(linear.bias.detach().float(), requires_grad=False)
        rounds = isinstance(linear, QuantizedLinear)
        self.activation: ActivationFormat | None = linear.activation if rounds else None
        self.input_scale = linear.input_scale if rounds else None
        self.name, self.tape = name, tape

    def forward(self, input: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        x = input
        if self.activation is not None:
            x = straight(x, round_activation(x.detach(), self.activation, self.input_scale))
        out = super().forward(x)
        return self.tape.record(self.name, x, out) if torch.is_grad_enabled() else out
