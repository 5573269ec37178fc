"""What an activation looks like to a quantizer: sums over tokens, channel by channel.

Sums of two halves of the data add up to the sums of the whole. The first token of a sequence and
every BOS are kept apart: models put single numbers a thousand times larger than the rest there (Sun
et al. 2024, "Massive Activations in Large Language Models", https://arxiv.org/abs/2402.17762), and
these say nothing about the other tokens.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from pennyweight.core import ActivationFormat, NumericalError
from pennyweight.formats.schemes import parse_scheme
from pennyweight.model.linear import round_activation, static_input_scale

LOUD = 6.0  # Dettmers et al. 2022, LLM.int8(), arXiv:2208.07339, section 3.2
MASSIVE, MASSIVE_RATIO = 100.0, 1000.0  # Sun et al. 2024, section 2: size, and against the median


def _activation(scheme: str) -> ActivationFormat:
    found = parse_scheme(scheme, torch.float32).activation
    assert found is not None
    return found


PER_TOKEN, PER_TENSOR = _activation("W8A8"), _activation("W8A8_static")


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Of each channel over some tokens: its largest value and its power sums, in float64."""

    tokens: int
    absmax: Float64[Tensor, " channels"]
    sum: Float64[Tensor, " channels"]
    square_sum: Float64[Tensor, " channels"]
    cube_sum: Float64[Tensor, " channels"]
    fourth_sum: Float64[Tensor, " channels"]
    loud: Int64[Tensor, " channels"]  # tokens at which |x| > LOUD
    massive: int  # numbers that are MASSIVE and MASSIVE_RATIO times their sample's median
    token_noise: Float64[Tensor, " channels"]  # squared error of int8, one scale for each token
    tensor_noise: Float64[Tensor, " channels"]  # the same with one scale for these of each sample

    def merge(self, other: Moments) -> Moments:
        """The moments of both."""
        return _merged(self, other, largest="absmax")

    @property
    def rms(self) -> Float64[Tensor, " channels"]:
        return (self.square_sum / max(self.tokens, 1)).sqrt()

    @property
    def kurtosis(self) -> Float64[Tensor, " channels"]:
        """E (x - mean)^4 / variance^2 of each channel: 3 for a normal one, nan if constant."""
        count = max(self.tokens, 1)
        sums = (self.sum, self.square_sum, self.cube_sum, self.fourth_sum)
        return kurtosis(*(each / count for each in sums))

    @property
    def tensor_kurtosis(self) -> float:
        """The same over all numbers of all channels."""
        count = max(self.tokens * len(self.sum), 1)
        sums = (self.sum, self.square_sum, self.cube_sum, self.fourth_sum)
        return kurtosis(*(each.sum() / count for each in sums)).item()


def kurtosis(first: Tensor, second: Tensor, third: Tensor, fourth: Tensor) -> Tensor:
    """From the means of x, x^2, x^3 and x^4."""
    variance = second - first**2
    central = fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4
    # Below this the difference of two rounded means is noise.
    is_constant = variance <= 1e-12 * second
    return (central / variance.where(~is_constant, 1.0) ** 2).where(~is_constant, torch.nan)


@dataclass(frozen=True, kw_only=True)
class Sums:
    """What was seen of one activation."""

    samples: int
    first: Moments  # at the first position of each sample, and at every BOS
    rest: Moments
    noise: Float64[Tensor, " channels"]  # squared error of int8, one scale for each whole sample

    def merge(self, other: Sums) -> Sums:
        """The sums of both halves of the data."""
        return _merged(self, other)

    @property
    def all(self) -> Moments:
        return self.first.merge(self.rest)


def _merged(a, b, largest: str = ""):
    """Field by field: nested sums merge, `largest` is a maximum, all else adds up."""
    values = {}
    for field in dataclasses.fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, Moments):
            values[field.name] = x.merge(y)
        else:
            values[field.name] = torch.maximum(x, y) if field.name == largest else x + y
    return type(a)(**values)


def observe_profile(x: Float[Tensor, "tokens channels"], is_first: Bool[Tensor, " tokens"]) -> Sums:
    """The sums of one sample. Raises NumericalError if it holds NaN or Inf."""
    x = x.float()
    if not bool(x.isfinite().all()):
        raise NumericalError("the activation holds NaN or Inf")
    median = x.abs().median() if x.numel() else torch.tensor(0.0)
    return Sums(
        samples=1,
        first=_moments(x[is_first], median),
        rest=_moments(x[~is_first], median),
        noise=_tensor_noise(x),
    )


def _moments(x: Float[Tensor, "tokens channels"], median: Tensor) -> Moments:
    wide, size = x.double(), x.abs()
    square = wide.square()
    absmax = size.amax(0) if len(x) else torch.zeros(x.shape[1])
    return Moments(
        tokens=len(x),
        absmax=absmax.double(),
        sum=wide.sum(0),
        square_sum=square.sum(0),
        cube_sum=(square * wide).sum(0),
        fourth_sum=square.square().sum(0),
        loud=(size > LOUD).sum(0),
        massive=int(((size > MASSIVE) & (size > MASSIVE_RATIO * median)).sum()),
        token_noise=_squared_error(x, round_activation(x, PER_TOKEN, None) if len(x) else x),
        tensor_noise=_tensor_noise(x),
    )


def _tensor_noise(x: Float[Tensor, "tokens channels"]) -> Float64[Tensor, " channels"]:
    """With the one scale that its own largest number asks for."""
    if not len(x):
        return torch.zeros(x.shape[1], dtype=torch.float64)
    scale = static_input_scale(x.abs().amax(0), PER_TENSOR)
    return _squared_error(x, round_activation(x, PER_TENSOR, scale))


def _squared_error(x: Tensor, rounded: Tensor) -> Float64[Tensor, " channels"]:
    return (rounded.double() - x.double()).square().sum(0)


def sqnr_db(signal: Tensor, noise: Tensor, weight: Tensor | None = None) -> float:
    """10 log10 of signal to noise energy; `weight` says how much of a channel arrives behind it."""
    weight = torch.ones_like(signal) if weight is None else weight.double()
    signal_sum, noise_sum = (signal * weight).sum(), (noise * weight).sum()
    if not signal_sum > 0:
        return float("nan")  # nothing there
    return float("inf") if noise_sum == 0 else (10 * (signal_sum / noise_sum).log10()).item()
