"""From the sums of an activation to the numbers that say how hard it is to quantize."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from scipy.stats import rankdata
from torch import Tensor

from pennyweight.observe.profile import Moments, Sums, sqnr_db

TOP_SHARE, LEAST_TOP = 0.01, 4  # the channels that are called top: 1 %, and of few at least so many
LOUD_TOKENS = 0.06  # of the tokens, for a channel to be loud: LLM.int8(), section 3.2


@dataclass(frozen=True, kw_only=True)
class Channel:
    """One of the top channels, on ordinary tokens."""

    channel: int
    absmax: float
    rms: float
    kurtosis: float
    loud_share: float  # of the tokens, at which it is above 6


@dataclass(frozen=True, kw_only=True)
class Portrait:
    """One activation. All but what is named `first` and `massive` leaves first tokens out.

    The three SQNR are in dB and weigh each channel by the squared column of the weights that read
    it: what reaches the outputs, taking rounding errors of channels as independent.
    """

    channels: int
    tokens: int
    absmax: float
    rms: float
    kurtosis: float  # over all numbers; 3 for a normal distribution
    max_to_median: float  # largest over median absmax of the channels
    top_energy_share: float  # of the squares that is in the top channels by energy
    loud_channels: tuple[int, ...]  # above 6 at 6 % of the tokens or more
    massive: int  # massive numbers on ordinary tokens
    first_massive: int  # the same on first tokens
    first_absmax: float
    token_sqnr_db: float  # int8, one scale for each token
    tensor_sqnr_db: float  # int8, one scale for each sample, without its first tokens
    whole_tensor_sqnr_db: float  # the same, first tokens included
    top: tuple[Channel, ...]  # by absmax


def top_count(channels: int) -> int:
    """How many channels are called top."""
    return min(channels, max(LEAST_TOP, round(TOP_SHARE * channels)))


def portray(sums: Sums, column_energy: Float[Tensor, " channels"] | None = None) -> Portrait:
    """column_energy: of each channel, the squares of its weights; without it all count alike."""
    rest, everything = sums.rest, sums.all
    channels, absmax = len(rest.absmax), rest.absmax
    energy = rest.square_sum.sort(descending=True).values
    total = energy.sum().item()
    return Portrait(
        channels=channels,
        tokens=everything.tokens,
        absmax=absmax.max().item(),
        rms=math.sqrt(total / max(rest.tokens * channels, 1)),
        kurtosis=rest.tensor_kurtosis,
        max_to_median=_ratio(absmax.max().item(), absmax.median().item()),
        top_energy_share=_ratio(energy[: top_count(channels)].sum().item(), total),
        loud_channels=tuple(_loud(rest).nonzero().flatten().tolist()),
        massive=rest.massive,
        first_massive=sums.first.massive,
        first_absmax=sums.first.absmax.max().item(),
        token_sqnr_db=sqnr_db(everything.square_sum, everything.token_noise, column_energy),
        tensor_sqnr_db=sqnr_db(rest.square_sum, rest.tensor_noise, column_energy),
        whole_tensor_sqnr_db=sqnr_db(everything.square_sum, sums.noise, column_energy),
        top=tuple(_channel(rest, index) for index in top_channels(absmax).tolist()),
    )


def _loud(moments: Moments) -> Tensor:
    return (moments.loud >= LOUD_TOKENS * moments.tokens) & (moments.loud > 0)


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan


def _channel(moments: Moments, index: int) -> Channel:
    return Channel(
        channel=index,
        absmax=moments.absmax[index].item(),
        rms=moments.rms[index].item(),
        kurtosis=moments.kurtosis[index].item(),
        loud_share=moments.loud[index].item() / max(moments.tokens, 1),
    )


def top_channels(values: Float64[Tensor, " channels"]) -> Int64[Tensor, " top"]:
    """The channels with the largest values, the largest first; of equal ones the first."""
    return torch.argsort(values, descending=True, stable=True)[: top_count(len(values))]


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """How alike one activation is on two calibration sets, ordinary tokens only."""

    top_overlap: float  # of the top channels by absmax, the share that both have
    top_by_chance: float  # what two random choices would share
    spearman: float  # rank correlation of all channels' absmax; nan if one of them is constant
    range_ratio: float  # largest number on the second over that on the first


def compare(a: Sums, b: Sums) -> Likeness:
    """The second set against the first."""
    x, y = a.rest.absmax, b.rest.absmax
    shared = set(top_channels(x).tolist()) & set(top_channels(y).tolist())
    return Likeness(
        top_overlap=len(shared) / top_count(len(x)),
        top_by_chance=top_count(len(x)) / len(x),
        spearman=spearman(x, y),
        range_ratio=_ratio(y.max().item(), x.max().item()),
    )


def spearman(x: Float64[Tensor, " _"], y: Float64[Tensor, " _"]) -> float:
    """Pearson's correlation of the ranks; equal values share the mean of their ranks."""
    ranks = [rankdata(each.numpy()) for each in (x, y)]
    a, b = (each - each.mean() for each in ranks)
    size = math.sqrt(float(np.dot(a, a)) * float(np.dot(b, b)))
    return float(np.dot(a, b)) / size if size else math.nan
