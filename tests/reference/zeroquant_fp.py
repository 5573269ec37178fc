"""Scales that are powers of two: ZeroQuant-FP, arXiv:2307.09782, section 3, in exact arithmetic."""

from fractions import Fraction

from tests.reference.microscaling import ceil_log2, floor_log2

E2M1 = [Fraction(n, 2) for n in (0, 1, 2, 3, 4, 6, 8, 12)]
LARGEST = E2M1[-1]


def scales(row: list[list[float]]) -> list[Fraction]:
    """What clips nothing, of each group of a row."""
    return [max(abs(Fraction(x)) for x in group) / LARGEST for group in row]


def m1(s: Fraction) -> Fraction:
    """2^ceil(log2 s)"""
    return Fraction(2) ** ceil_log2(s)


def m2(s: Fraction, largest: Fraction, down: bool) -> Fraction:
    """s_max / 2^ceil(log2(s_max / s)); with floor, if nothing is to be clipped."""
    ratio = largest / s
    return largest / Fraction(2) ** (ceil_log2(ratio) if down else floor_log2(ratio))


def nearest(x: float, scale: Fraction) -> Fraction:
    """x as a multiple of the scale; ties go to the even one of the codes in E2M1."""
    size = abs(Fraction(x)) / scale
    code = min(range(8), key=lambda i: (abs(E2M1[i] - size), i % 2))
    return (1 if x >= 0 else -1) * E2M1[code] * scale
