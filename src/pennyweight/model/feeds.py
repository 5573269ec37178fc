"""Which channel of an earlier layer feeds which channel of a later input: found by trying.

If channel j of a norm (or row j of a linear) is scaled, and some channels of a later input scale
with it and nothing else about them changes, then these channels can be scaled back in the weights
that read them, and the block computes what it did. Each channel j is scaled by a power of two that
spells a digit of j; from the ratios that arrive the numbers are read off. So v and o with grouped
queries, halves of a fused gate and up, gains that are stored as an offset from one, and activations
that do or do not let a scale through need no table of families.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from pennyweight.model.capture import set_parameters

BASE = 8  # a digit is spelled as 2^-digit: all are exact, and none is lost in bfloat16
CLOSE = 0.02  # a ratio is a power of two within this: gains that are offsets are rounded


@dataclass(frozen=True)
class Feed:
    """channels[i]: the channel of `producer` that channel i of the input is proportional to."""

    producer: str  # a norm or a linear of the block
    offset: float  # what is added to the stored gain before it multiplies: 1 for Gemma's norms
    channels: Int64[Tensor, " in"]


def find_feed(
    block: nn.Module, producer: str, observe: Callable[[], Float[Tensor, "tokens in"]]
) -> Feed | None:
    """The feed from `producer` to the input that `observe` shows, or None if there is none.

    observe: runs the block on one sample. The block is left as it was.
    """
    module = block.get_submodule(producer)
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    if weight is None:
        return None
    before, size = observe().float(), len(weight)
    rows, width = before.abs().argmax(0), before.shape[1]  # tokens at which ratios are read best
    dead = before.abs().amax(0) == 0
    first = max(
        size - width, 0
    )  # of a fused q,k,v or gate,up only the last part may let it through

    def factors(scale: Tensor, offset: float) -> Tensor:
        """What the input is multiplied by, channel by channel, if the producer is by `scale`."""
        with scaled(block, producer, torch.cat([torch.ones(first), scale]), offset):
            after = observe().float()
        if after.shape != before.shape:  # other tokens were routed here
            return torch.zeros(width)
        columns = torch.arange(width)
        return (after[rows, columns] / before[rows, columns]).where(~dead, 1.0)

    for offset in (0.0,) if isinstance(module, nn.Linear) else (0.0, 1.0):
        read = _spelled(size - first, width, lambda scale, o=offset: factors(scale, o))
        channels = None if read is None else _with_dead(read, dead)
        if channels is not None:
            return Feed(producer, offset, first + channels)
    return None


def _with_dead(channels: Tensor, dead: Tensor) -> Int64[Tensor, " in"] | None:
    """Channels that were zero on all tokens show nothing; they are told only by an even order."""
    straight = torch.arange(len(channels))
    if not bool(dead.any()):
        return channels if bool(channels.any()) or len(channels) == 1 else None
    return straight if bool((channels == straight)[~dead].all()) else None


def _spelled(
    size: int, width: int, factors: Callable[[Tensor], Tensor]
) -> Int64[Tensor, " in"] | None:
    """The producer's channel of each of `width` channels; None if one has none."""
    numbers, found, place = torch.arange(size), torch.zeros(width, dtype=torch.int64), 1
    while place < size or place == 1:
        ratio = factors(torch.exp2(-(numbers // place % BASE).float()))
        digit = -ratio.clamp(min=2.0**-20).log2().round()
        fits = (ratio * digit.exp2() - 1).abs() < CLOSE
        if not bool((fits & (digit >= 0) & (digit < BASE)).all()):
            return None
        found += digit.long() * place
        place *= BASE
    return found if bool((found < size).all()) else None


@contextmanager
def scaled(
    block: nn.Module, producer: str, factor: Float[Tensor, " channels"], offset: float
) -> Iterator[None]:
    """Multiply the output channels of a norm or linear, for the length of a `with` block."""
    module = block.get_submodule(producer)
    old = {f"{producer}.{name}": p.data for name, p in module.named_parameters(recurse=False)}
    new = {name: scale_parameter(value, factor, offset) for name, value in old.items()}
    set_parameters(block, new)
    try:
        yield
    finally:
        set_parameters(block, old)


def scale_parameter(value: Tensor, factor: Tensor, offset: float) -> Tensor:
    """A weight [out, in] or gain or bias [out] whose output is `factor` times what it was.

    The offset belongs to gains alone; no family with one has biases.
    """
    wide = factor.view(-1, *[1] * (value.dim() - 1))
    return ((value.float() + offset) * wide - offset).to(value.dtype)
