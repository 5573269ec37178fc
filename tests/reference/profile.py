"""Statistics of an activation by their definitions, one number at a time, in Python floats."""

import math

import numpy as np
from scipy import stats


def int8(x: float, scale: float) -> float:
    """Round to nearest, ties to even, on the symmetric grid -127 .. 127 (-128 .. 127)."""
    return scale * min(127, max(-128, round(x / scale)))


def noise_per_token(rows: list[list[float]]) -> list[float]:
    out = [0.0] * len(rows[0])
    for row in rows:
        scale = max(abs(v) for v in row) / 127
        for channel, v in enumerate(row):
            out[channel] += (int8(v, scale) - v) ** 2 if scale else 0.0
    return out


def noise_per_tensor(rows: list[list[float]]) -> list[float]:
    scale = max(abs(v) for row in rows for v in row) / 127
    return [sum((int8(row[c], scale) - row[c]) ** 2 for row in rows) for c in range(len(rows[0]))]


def kurtosis(values: list[float]) -> float:
    return float(stats.kurtosis(values, fisher=False))


def spearman(x: list[float], y: list[float]) -> float:
    return float(stats.spearmanr(x, y).statistic)


def top_energy_share(rows: list[list[float]], count: int) -> float:
    energy = sorted((sum(row[c] ** 2 for row in rows) for c in range(len(rows[0]))), reverse=True)
    return math.fsum(energy[:count]) / math.fsum(energy)


def output_sqnr_db(x: np.ndarray, rounded: np.ndarray, weight: np.ndarray) -> float:
    """Of x W^T, exactly: without the assumption that channels' errors are independent."""
    wanted, got = x @ weight.T, rounded @ weight.T
    return 10 * math.log10((wanted**2).sum() / ((got - wanted) ** 2).sum())
