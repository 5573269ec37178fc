"""A layer with correlated inputs, as real ones are."""

from dataclasses import replace

import torch

from pennyweight.core import Format, FormatError, Serial, Stats
from pennyweight.quantize import QUANTIZERS
from pennyweight.quantize.base import Limited, Selects

SAMPLES = 4


def problem(rows=48, columns=256, seed=0, tokens=1024):
    """(weight, stats of its inputs and its gradient, with every field but `keep`)."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.eye(columns) + 0.3 * torch.randn(columns, columns, generator=generator)
    x = torch.randn(tokens, columns, generator=generator) @ mix
    weight = 0.05 * torch.randn(rows, columns, generator=generator)
    gradient = torch.randn(SAMPLES, rows, columns, generator=generator)
    peaks = x.abs().view(SAMPLES, -1, columns).amax(1)
    return weight, Stats(
        tokens=tokens, gram=x.T @ x, absmax=peaks.amax(0), least_absmax=peaks.amin(0),
        abs_sum=x.abs().sum(0), square_sum=x.square().sum(0), samples=SAMPLES,
        abs_gradient=gradient.abs().sum(0), squared_gradient=gradient.square().sum(0),
    )  # fmt: skip


def takes(quantize, format: Format) -> bool:
    """Whether the quantizer is made for the format: most are for all."""
    try:
        if isinstance(quantize, Limited):
            quantize.check_format(format)
    except FormatError:
        return False
    return True


def pairs(formats: dict[str, Format], names) -> list[tuple[str, str]]:
    """Every quantizer with every one of these formats that it is made for."""
    made = {name: QUANTIZERS[name]() for name in QUANTIZERS}
    return [(q, name) for q in made for name in names if takes(made[q], formats[name])]


def with_choice(quantize, weight, format, stats):
    """`stats` with the weights to keep in it, for a quantizer that looks at all rows to choose."""
    if not isinstance(quantize, Selects):
        return stats
    return replace(stats, keep=quantize.select(weight, format, stats, Serial()))


def reordered(stats, order):
    """The stats of the weight with its rows in this order."""
    fields = ("abs_gradient", "squared_gradient")
    return replace(stats, **{name: getattr(stats, name)[order] for name in fields})


def output_loss(error, stats):
    """Squared error of the layer's output, summed over rows."""
    return ((error.double() @ stats.gram.double()) * error).sum() / stats.tokens
