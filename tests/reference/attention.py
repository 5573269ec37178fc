"""Attention over rounded numbers, one token and one head at a time."""

import math

Rows = list[list[float]]


def round_row(row: list[float], bits: int, group: int) -> list[float]:
    """Symmetric integers: scale = amax / (2^(bits - 1) - 1), for each group of the row."""
    found, top = [], 2 ** (bits - 1) - 1
    for start in range(0, len(row), group):
        part = row[start : start + group]
        scale = max(abs(x) for x in part) / top or 1.0
        found += [scale * max(-top - 1, min(top, round(x / scale))) for x in part]
    return found


def attend(query: Rows, key: Rows, value: Rows, scaling: float, round_weights=None) -> Rows:
    """softmax(q k^T scaling) v of one head, causal."""
    found = []
    for token, q in enumerate(query):
        scores = [scaling * sum(a * b for a, b in zip(q, k, strict=True)) for k in key[: token + 1]]
        sizes = [math.exp(score - max(scores)) for score in scores]
        weights = [size / sum(sizes) for size in sizes]
        if round_weights:
            weights = round_weights(weights)
        columns = zip(*value[: token + 1], strict=True)
        found.append(
            [sum(w * x for w, x in zip(weights, column, strict=True)) for column in columns]
        )
    return found
