"""Scores as one would write them on a blackboard: one document, one token at a time."""

import math

import torch


def slow_nll(model, ids: list[int], context: int) -> tuple[float, int]:
    """Sum of -log p(token | up to context - 1 tokens before it) in nats, and the number of tokens.

    Every token gets a forward pass of its own, so no window can be cut wrongly. Equal to the
    windows of pennyweight for documents of at most `context` tokens, and for stride 1.
    """
    total = 0.0
    for position in range(1, len(ids)):
        before = ids[max(0, position - context + 1) : position]
        probabilities = model(torch.tensor([before]))[0, -1].double().softmax(-1)
        total -= math.log(probabilities[ids[position]])
    return total, len(ids) - 1


def slow_divergence(p: list[float], q: list[float]) -> float:
    """KL(p || q) of two distributions in nats."""
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)
