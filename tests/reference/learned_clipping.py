"""Learned weight clipping, one weight at a time.

Shao et al. 2023 (OmniQuant), arXiv:2308.13137, equation 2, with the gradient of a rounded number
taken to be that of the number (the straight-through estimator).
"""

import math


def round_half_even(x: float) -> float:
    return float(round(x))


def symmetric(weights: list[float], strength: float, reach: float, ends: tuple[float, float]):
    """(rounded weights, their derivatives by the strength) of one group.

    scale = strength * max|w| / reach; ends: the least and the largest code.
    """
    full = max(map(abs, weights)) / reach
    scale, values, slopes = strength * full, [], []
    for w in weights:
        code = round_half_even(w / scale)
        if ends[0] <= w / scale <= ends[1]:
            slope = code - w / scale  # d(scale * round(w / scale)) / d scale
        else:
            code = min(max(code, ends[0]), ends[1])
            slope = code
        code = min(max(code, ends[0]), ends[1])
        values.append(scale * code)
        slopes.append(slope * full)
    return values, slopes


def asymmetric(weights: list[float], low: float, high: float, levels: int):
    """Rounded weights of one group whose range is low * min .. high * max, codes 0 .. levels."""
    least, largest = low * min(*weights, 0.0), high * max(*weights, 0.0)
    scale = (largest - least) / levels
    zero = round_half_even(-least / scale)
    codes = [min(max(round_half_even(w / scale + zero), 0), levels) for w in weights]
    return [scale * (code - zero) for code in codes]


def logit(p: float) -> float:
    return math.log(p / (1 - p))
