"""The gradients that SignRound takes the signs of, one weight at a time.

Cheng et al. 2023, arXiv:2309.05516, equations 3 and 4: W' = s (clamp(round(W / s + z + V)) - z),
with the gradient of a rounded number taken to be that of the number; one group per row, learning
starts at V = 0 and factors of 1, and the loss is the squared error of W' x.
"""

from dataclasses import dataclass


@dataclass
class Slopes:
    offset: list[list[float]]
    low: list[float]
    high: list[float]


def sign(x: float) -> int:
    return (x > 0) - (x < 0)


def slopes(
    weights: list[list[float]], scales: list[float], zeros: list[float] | None,
    inputs: list[list[float]], targets: list[list[float]], *, levels: int, middle: float,
) -> Slopes:  # fmt: skip
    """zeros: zero points, None if symmetric; then `high` is that of the one factor."""
    found = Slopes([], [], [])
    for row, weight in enumerate(weights):
        scale, zero = scales[row], middle if zeros is None else zeros[row]
        raw = [w / scale + zero for w in weight]
        code = [min(max(float(round(r)), 0.0), float(levels)) for r in raw]
        free = [-0.5 <= r <= levels + 0.5 for r in raw]  # so that it is not clamped
        made = [(c - zero) * scale for c in code]
        pulls = [0.0] * len(weight)  # the loss by each rounded weight, up to a positive factor
        for x, y in zip(inputs, targets, strict=True):
            wrong = sum(m * one for m, one in zip(made, x, strict=True)) - y[row]
            pulls = [p + wrong * one for p, one in zip(pulls, x, strict=True)]
        found.offset.append([p * scale * f for p, f in zip(pulls, free, strict=True)])
        by_scale = sum(
            p * ((c - zero) - (w / scale if f else 0.0))
            for p, c, w, f in zip(pulls, code, weight, free, strict=True)
        )
        if zeros is None:
            found.high.append(by_scale * scale)
            continue
        # The zero point shifts the code as much as it is taken off, but for codes that are clamped.
        by_zero = sum(-p * scale * (not f) for p, f in zip(pulls, free, strict=True))
        # s = s0 (low z0 + high (n - z0)) / n and z = low z0 s0 / s
        low_scale, high_scale = scale * zero / levels, scale * (levels - zero) / levels
        found.low.append(by_scale * low_scale + by_zero * (zero - zero * low_scale / scale))
        found.high.append(by_scale * high_scale - by_zero * zero * high_scale / scale)
    return found
