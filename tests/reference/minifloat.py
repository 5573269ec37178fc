"""Small floats by their definition: every value listed, the nearest one looked up."""

from fractions import Fraction


def values(exponent_bits: int, mantissa_bits: int) -> list[Fraction]:
    """The magnitude of every code without its sign bit, as if none stood for NaN or Inf.

    (-1)^s * 2^(e - bias) * (1 + m / 2^M), and 2^(1 - bias) * m / 2^M where e is 0.
    """
    bias, size = 2 ** (exponent_bits - 1) - 1, 2**mantissa_bits
    found = []
    for exponent in range(2**exponent_bits):
        for mantissa in range(size):
            lead, power = (1, exponent - bias) if exponent else (0, 1 - bias)
            found.append((lead + Fraction(mantissa, size)) * Fraction(2) ** power)
    return found


def nearest(value: float, magnitudes: list[Fraction]) -> int:
    """The code of the nearest magnitude, of two equally near ones the even code."""
    size = abs(Fraction(value))
    return min(range(len(magnitudes)), key=lambda code: (abs(magnitudes[code] - size), code % 2))
