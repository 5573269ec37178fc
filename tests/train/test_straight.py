"""What is learned with is, bit for bit, what will be stored; gradients are those of the formula."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pennyweight.formats.rounding import fit, round_to_nearest
from pennyweight.formats.schemes import parse_scheme
from pennyweight.model.linear import QuantizedLinear
from pennyweight.train.straight import (
    StraightLinear,
    Tape,
    clipped_range,
    round_straight,
    straight,
)
from tests.reference import learned_clipping as reference

SCHEMES = ("W2A16_g32_asym", "W3A16_g32", "W4A16", "W4A16_tensor", "W4A16_g32_fzp", "W4A16_fp4_g32",
           "W8A16_fp8_block", "MXFP4A16", "MXINT4A16_rceil")  # fmt: skip


def weights(seed=0, rows=128, cols=128):
    return 0.05 * torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


def ones(weight, format):
    return torch.ones(format.groups(*weight.shape))


@pytest.mark.parametrize("name", SCHEMES)
def test_clipping_nothing_is_rounding_to_nearest(name):
    weight, format = weights(), parse_scheme(name).weight
    weight[:2] = 0  # groups of nothing but zeros
    weight[2] = weight[2].abs()  # and one-sided ones
    scale, zero_point = clipped_range(weight, format, ones(weight, format), ones(weight, format))
    expected = fit(weight, format)
    assert torch.equal(scale, expected[0])
    assert zero_point is None if expected[1] is None else torch.equal(zero_point, expected[1])
    rounded = round_straight(weight, format, scale, zero_point)
    assert torch.equal(rounded, round_to_nearest(weight, format).dequantize())


@given(st.integers(0, 2**31), st.floats(0.3, 1), st.floats(0.3, 1), st.sampled_from(SCHEMES))
def test_what_is_computed_is_what_is_stored(seed, low, high, name):
    weight, format = weights(seed), parse_scheme(name).weight
    whole = ones(weight, format)
    scale, zero_point = clipped_range(weight, format, low * whole, high * whole)
    stored = round_to_nearest(weight, format, scale, zero_point).dequantize()
    assert torch.equal(round_straight(weight, format, scale, zero_point), stored)


@given(st.integers(0, 2**31), st.floats(0.4, 1))
def test_symmetric_groups_as_the_formula_says(seed, strength):
    format = parse_scheme("W3A16", torch.float32).weight
    weight = weights(seed, 1, 16).double().float()
    high = torch.full((1, 1), strength, requires_grad=True)
    scale, _ = clipped_range(weight, format, high, high)
    rounded = round_straight(weight, format, scale, None)
    grid = format.grid
    values, slopes = reference.symmetric(
        weight[0].tolist(), high.item(), grid.reach,
        (grid.lowest - grid.middle, grid.highest - grid.middle),
    )  # fmt: skip
    step = 2 * scale.item()
    assert (rounded[0] - torch.tensor(values)).abs().max() <= step  # a tie may fall either way
    same = (rounded[0] - torch.tensor(values)).abs() < 1e-6
    assert same.sum() >= 14
    (slope,) = torch.autograd.grad(rounded[0][same].sum(), high)  # of numbers of about 0.1
    expected = torch.tensor(slopes)[same]
    assert slope.item() == pytest.approx(expected.sum().item(), abs=1e-4)


@given(st.integers(0, 2**31), st.floats(0.4, 1), st.floats(0.4, 1))
def test_asymmetric_groups_as_the_formula_says(seed, low, high):
    format = parse_scheme("W3A16_asym", torch.float32).weight
    weight = weights(seed, 1, 16)
    fractions = [torch.full((1, 1), part) for part in (low, high)]
    rounded = round_straight(weight, format, *clipped_range(weight, format, *fractions))
    expected = reference.asymmetric(weight[0].tolist(), low, high, 7)
    assert ((rounded[0] - torch.tensor(expected)).abs() < 1e-6).sum() >= 14  # ties aside


def test_the_gradient_goes_straight_through():
    value = torch.tensor([1.2, -0.7], requires_grad=True)
    out = straight(value, value.round())
    assert out.tolist() == [1.0, -1.0]
    (gradient,) = torch.autograd.grad((out * torch.tensor([3.0, 5.0])).sum(), value)
    assert gradient.tolist() == [3.0, 5.0]


@pytest.mark.parametrize("scheme", ["W8A8", "MXINT4", None])
def test_a_taped_linear_computes_the_same_and_gives_the_gradient_of_its_weight(scheme):
    weight, x = (
        weights(1, 24, 64),
        torch.randn(1, 7, 64, generator=torch.Generator().manual_seed(2)),
    )
    bias = torch.arange(24.0)
    linear = nn.Linear(64, 24)
    if scheme:
        linear = QuantizedLinear(weight, bias, parse_scheme(scheme).activation)
    linear.weight, linear.bias = nn.Parameter(weight), nn.Parameter(bias)
    tape = Tape()
    taped = StraightLinear(linear, "o", tape)
    taped.weight.copy_(weight)
    with torch.no_grad():
        assert torch.equal(taped(x), linear(x))
    calls, leaves = tape.begin()
    out = taped(x.clone())
    assert len(leaves) == 1  # its input needed no gradient
    torch.autograd.grad(out.square().sum(), leaves)
    call = calls["o"][0]
    linear.weight.requires_grad_()
    (expected,) = torch.autograd.grad(linear(x).square().sum(), linear.weight)
    torch.testing.assert_close(call.dy.T @ call.x, expected)
