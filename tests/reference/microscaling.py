"""Shared exponents by their definitions, in exact arithmetic."""

from fractions import Fraction


def floor_log2(value: Fraction) -> int:
    """The n with 2^n <= value < 2^(n + 1)."""
    n = 0
    while Fraction(2) ** n > value:
        n -= 1
    while Fraction(2) ** (n + 1) <= value:
        n += 1
    return n


def ceil_log2(value: Fraction) -> int:
    n = floor_log2(value)
    return n if Fraction(2) ** n == value else n + 1


def exponent(amax: float, largest: Fraction, digits: int, rule: str) -> int:
    """log2 of the scale. largest: of the element; digits: of its mantissa."""
    size, emax = Fraction(amax), floor_log2(largest)
    if rule == "ocp":  # OCP Microscaling Formats 1.0, section 6.3, line 1 of the algorithm
        return floor_log2(size) - emax
    if rule == "rceil":
        return ceil_log2(size / largest)
    if rule == "msfp":
        return ceil_log2(size) - emax - 1
    step = Fraction(2) ** (floor_log2(size) - digits)  # even: amax is rounded as an element is
    return floor_log2((size / step + Fraction(1, 2)).__floor__() * step) - emax


def mxint_of_qera(block: list[float], width: int) -> list[float]:
    """quantize_mxint of QERA: sign and magnitude, exponent of the largest by floor."""
    scale = Fraction(2) ** floor_log2(max(abs(Fraction(x)) for x in block))
    top = 2 ** (width - 1) - 1
    found = []
    for x in block:
        size = min(round(abs(Fraction(x)) / scale * 2 ** (width - 2)), top)
        found.append(float((1 if x >= 0 else -1) * size * scale / 2 ** (width - 2)))
    return found


def mxint_of_mase(block: list[float], width: int) -> list[float]:
    """mxint of MASE: two's complement, exponent of the largest by ceil."""
    scale = Fraction(2) ** ceil_log2(max(abs(Fraction(x)) for x in block))
    half = 2 ** (width - 1)
    return [
        float(max(-half, min(half - 1, round(Fraction(x) / scale * half))) * scale / half)
        for x in block
    ]
