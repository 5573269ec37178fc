"""A linear whose groups have learned ranges, and whose channels may have learned scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pennyweight.core import Format, FormatError, Quantized, UnsupportedError, VectorGrid, plain
from pennyweight.formats.rounding import fit, require_scale, round_to_nearest
from pennyweight.train.base import Given, Link, Start, Values
from pennyweight.train.straight import clipped_range, round_straight

WIDEST = 4.0  # sigmoid(4) = 0.982: where OmniQuant starts, and where the gradient is not yet flat
ROWS = 256  # of a weight in one task


def require_range(format: Format) -> None:
    """Raises FormatError for a format whose scale cannot be learned on its own."""
    require_scale(format)
    quantized = isinstance(format.scale, Format) or isinstance(format.zero_point, Format)
    if quantized or isinstance(format.grid, VectorGrid) or format.range in ("rms", "span"):
        raise FormatError(
            f"{format.name}: ranges are learned for formats with plain scales and zero points, "
            "such as W4A16_g128; use one of these, or leave this tensor out of the match"
        )


def require_bare(given: Given, method: str) -> None:
    """Raises UnsupportedError if a weight has corrections, which learned codes know nothing of."""
    for name, start in given.linears.items():
        if start.quantized.corrections:
            raise UnsupportedError(
                f"{given.name}.{name}: {method} chooses codes anew, and this weight keeps weights "
                "or a low-rank part beside its codes; use the quantizer rtn, mse_clip or gptq"
            )


@dataclass(frozen=True, kw_only=True)
class Fractions:
    """What of a group's least and largest value its range reaches to, if nothing is learned."""

    low: Float[Tensor, "row_groups groups"]
    high: Float[Tensor, "row_groups groups"]


def starting_fraction(start: Start) -> Float[Tensor, "row_groups groups"]:
    """The stored scale over that of the full range, at most 1: what the quantizer clipped to."""
    full, _ = fit(start.weight, start.format)
    return (plain(start.quantized.weight.scale) / full).clamp(0, 1)


@dataclass(frozen=True, kw_only=True)
class LearnedRange:
    """W = round(W0 * s / t) with the range of each group shrunk to sigmoid of two parameters.

    s is exp of the parameter of the link that feeds the input, t of each link that it feeds.
    """

    start: Start
    fixed: Fractions | None  # instead of learned ones
    low: str = ""  # names of the parameters
    high: str = ""
    into: Mapping[str, Link]  # parameter -> the link it scales, where this linear reads
    out_of: Mapping[str, Link]  # where it is the producer

    @property
    def reads(self) -> tuple[str, ...]:
        ranges = () if self.fixed else tuple({self.low: None, self.high: None})
        return (*ranges, *self.into, *self.out_of)

    @property
    def task_rows(self) -> int:
        return ROWS if self.start.format.group_rows == 1 else len(self.start.weight)

    def rows(self, values: Values, start: int, stop: int) -> Float[Tensor, "rows in"]:
        weight = self.start.weight[start:stop]
        for name, link in self.into.items():
            weight = weight * values[name].exp()[link.channels]
        for name, link in self.out_of.items():
            weight = weight / producer_scale(values[name], link)[start:stop, None]
        scale, zero_point = self._range(weight, values, slice(start, stop))
        return round_straight(weight, self.start.format, scale, zero_point)

    def _range(self, weight: Tensor, values: Values, rows: slice) -> tuple[Tensor, Tensor | None]:
        if self.start.format.group_rows != 1:
            rows = slice(None)
        if self.fixed:
            low, high = self.fixed.low, self.fixed.high
        else:
            low, high = values[self.low].sigmoid(), values[self.high].sigmoid()
        return clipped_range(weight, self.start.format, low[rows], high[rows])

    def quantize(self, weight: Float[Tensor, "out in"], values: Values) -> Quantized:
        with torch.no_grad():
            scale, zero_point = self._range(weight, values, slice(None))
        return Quantized(weight=round_to_nearest(weight, self.start.format, scale, zero_point))


def producer_scale(value: Tensor, link: Link) -> Float[Tensor, " size"]:
    """What each channel of the producer is divided by: 1 where no reader takes it."""
    taken = torch.zeros(link.size, dtype=torch.bool).index_fill(0, link.channels, True)
    return value.exp().where(taken, 1.0)


def learned_ranges(
    given: Given, *, learn: bool, scaled: Sequence[Link] = ()
) -> tuple[dict[str, LearnedRange], dict[str, Tensor]]:
    """(the linears, the logits of their ranges where they start).

    learn: whether ranges are learned; if not they stay at what the quantizer clipped to. scaled:
    links, the i-th of which has the parameter `scale.i`.
    """
    linears, logits = {}, {}
    for name, start in given.linears.items():
        fraction, fixed = starting_fraction(start), None
        low, high = f"{name}.low", f"{name}.high"
        if learn:
            logit = fraction.logit().clamp(-WIDEST, WIDEST)
            logits[high] = logit.clone()
            if start.format.symmetric:
                low = high
            else:
                logits[low] = logit.clone()
        else:
            fixed = Fractions(low=fraction, high=fraction)
        linears[name] = LearnedRange(
            start=start, fixed=fixed, low=low, high=high,
            into={f"scale.{i}": link for i, link in enumerate(scaled) if name in link.readers},
            out_of={f"scale.{i}": link for i, link in enumerate(scaled) if name == link.producer},
        )  # fmt: skip
    return linears, logits
