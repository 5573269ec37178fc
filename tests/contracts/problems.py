"""A layer with correlated inputs, as real ones are."""

import torch

from pennyweight.core import Stats


def problem(rows=48, columns=256, seed=0, tokens=1024):
    """(weight, stats of its inputs)."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.eye(columns) + 0.3 * torch.randn(columns, columns, generator=generator)
    x = torch.randn(tokens, columns, generator=generator) @ mix
    weight = 0.05 * torch.randn(rows, columns, generator=generator)
    return weight, Stats(tokens=tokens, gram=x.T @ x, absmax=x.abs().amax(0))


def output_loss(error, stats):
    """Squared error of the layer's output, summed over rows."""
    return ((error.double() @ stats.gram.double()) * error).sum() / stats.tokens
