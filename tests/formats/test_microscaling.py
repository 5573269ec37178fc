"""Shared exponents: the published rules, and the formats that are made of them."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pennyweight.core import Stats
from pennyweight.formats import GRIDS
from pennyweight.formats.ranges import RANGES, power_of_two, top
from pennyweight.formats.rounding import fit, round_to_nearest
from pennyweight.formats.schemes import parse_scheme
from pennyweight.quantize.mse_clip import MSEClip
from tests.formats.examples import weights
from tests.reference import microscaling as oracle

RULES = ("ocp", "even", "rceil", "msfp")
DIGITS = {"e2m1": 1, "e2m3": 3, "e3m2": 2, "e4m3": 3, "e5m2": 2, "int4": 2, "int8": 6, "e1m2": 2}
positive = st.floats(2**-60, 2**60, width=32)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", DIGITS)
@given(amax=positive | st.integers(-20, 20).map(lambda n: 2.0**n))
def test_the_exponent_is_that_of_the_definition(rule, name, amax):
    grid = GRIDS[name]
    # Both neighbours too: an inexact logarithm is wrong just below and above a power of two.
    for size in (amax, *neighbours(amax)):
        scale = RANGES[rule](torch.tensor(size), grid)
        wanted = oracle.exponent(size, Fraction(top(grid)), DIGITS[name], rule)
        assert scale.item() == 2.0**wanted, (size, wanted)


def neighbours(value: float) -> list[float]:
    this = torch.tensor(value)
    return [this.nextafter(torch.tensor(to)).item() for to in (0.0, torch.inf)]


@pytest.mark.parametrize("name", DIGITS)
@given(amax=positive)
def test_rceil_is_the_least_power_that_clips_nothing(name, amax):
    grid = GRIDS[name]
    scale = RANGES["rceil"](torch.tensor(amax), grid).item()
    assert scale / 2 * top(grid) < amax <= scale * top(grid)


def test_e8m0_has_every_power_from_minus_127_to_127():
    exponents = torch.arange(-127, 128)
    expected = torch.tensor([2.0**n for n in range(-127, 128)])
    assert torch.equal(power_of_two(exponents), expected)
    assert torch.equal(power_of_two(torch.tensor([-500, 500])), expected[[0, -1]])


def test_a_block_of_mxfp4_by_hand():
    # amax 7.5: floor(log2) = 2 = emax of e2m1, so the scale is 1; 7.5 is beyond 6, and 2.5 is a
    # tie of 2 and 3 that goes to the even code.
    block = torch.zeros(1, 32)
    block[0, :5] = torch.tensor([7.5, -2.5, 0.3, -0.2, 1.2])
    q = round_to_nearest(block, parse_scheme("MXFP4A16").weight)
    assert q.scale.item() == 1
    assert q.dequantize()[0, :6].tolist() == [6, -2, 0.5, 0, 1, 0]
    even = round_to_nearest(block, parse_scheme("MXFP4A16_even").weight)
    assert even.scale.item() == 2  # 7.5 has more digits than e2m1 and would round to 8
    assert even.dequantize()[0, :2].tolist() == [8, -2]


@pytest.mark.parametrize("width", [2, 4, 8])
@given(seed=st.integers(0, 99))
def test_the_mxint_of_two_other_codes(width, seed):
    """QERA's on the sign-magnitude grid (from 3 bits), MASE's on the integers."""
    block = weights(1, 16, seed)
    block[0, 0] = 0.25 if seed % 3 == 0 else block[0, 0]  # a power of two, where they differ
    values = block[0].tolist()
    theirs = parse_scheme(f"MXINT{width}A16_g16_msfp").weight
    found = round_to_nearest(block, theirs).dequantize()[0].tolist()
    assert found == oracle.mxint_of_mase(values, width)
    if width > 2:
        theirs = parse_scheme(f"MXE1M{width - 2}A16_g16").weight
        found = round_to_nearest(block, theirs).dequantize()[0].tolist()
        assert found == oracle.mxint_of_qera(values, width)


@pytest.mark.parametrize("size", ["_g16", "", "_g512", "_row", "_tensor"])
@pytest.mark.parametrize("element", ["MXFP4A16", "MXINT4A16", "MXFP8A16"])
def test_scales_are_powers_of_two_at_every_granularity(element, size):
    weight, format = weights(8, 512, seed=1), parse_scheme(f"{element}{size}").weight
    scale, _ = fit(weight, format)
    assert scale.shape == format.groups(8, 512)
    assert (torch.frexp(scale).mantissa == 0.5).all()


def test_finer_blocks_of_mxint4_are_better():
    weight = weights(16, 512, seed=2)
    error = lambda size: (
        round_to_nearest(weight, parse_scheme(f"MXINT4A16{size}").weight).dequantize() - weight
    ).norm()
    errors = [error(size) for size in ("_g16", "_g64", "_g256", "_row")]
    assert errors == sorted(errors) and errors[0] < 0.9 * errors[-1]


def test_clipping_searches_powers_of_two_as_well():
    """The search may take the next smaller power where that is better: scales stay storable."""
    weight = weights(16, 512, seed=3)
    format = parse_scheme("MXINT4A16").weight
    plain = round_to_nearest(weight, format)
    found = MSEClip()(weight, format, Stats()).weight
    assert (torch.frexp(found.scale).mantissa == 0.5).all()
    error = lambda q: (q.dequantize() - weight).square().sum()
    assert error(found) <= error(plain)


def test_nvfp4_has_two_levels():
    weight, format = weights(32, 256, seed=4), parse_scheme("NVFP4A16").weight
    weight[5, 7] = 3.0  # one huge value sets the scale of the tensor
    q = round_to_nearest(weight, format)
    assert q.scale.scale.shape == (1, 1) and torch.frexp(q.scale.scale).mantissa == 0.5
    largest = q.scale.format.grid.decode(q.scale.codes).max()
    assert 224 <= largest <= 448  # the scale of the tensor uses the range of e4m3
    wanted = weight.view(32, 16, 16).abs().amax(2) / 6
    # e4m3 has 3 digits: half a step is 1/16 at worst.
    assert ((q.scale.dequantize() / wanted - 1).abs() <= 1 / 16).all()
    # Few digits of code and scale: bfloat16 holds every weight, so no engine rounds it again.
    assert torch.equal(q.dequantize().bfloat16().float(), q.dequantize())


def test_a_zero_group_takes_nothing_from_the_scales_of_the_others():
    """Its scale is stored as the smallest there is, and not as a 1 that dwarfs the others."""
    weight, format = weights(8, 64, seed=5, size=1e-3), parse_scheme("NVFP4A16").weight
    whole = round_to_nearest(weight, format).dequantize()
    weight[2] = 0
    found = round_to_nearest(weight, format)
    assert (found.dequantize()[2] == 0).all() and (found.scale.dequantize() > 0).all()
    others = [row for row in range(8) if row != 2]
    assert torch.equal(found.dequantize()[others], whole[others])
