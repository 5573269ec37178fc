"""Rounding to nearest: error ceilings, exact zeros, no surprises at the ends of a dtype."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pennyweight.core import FormatError, NumericalError, plain
from pennyweight.formats import GRIDS
from pennyweight.formats.rounding import fit, round_to_nearest, snap
from pennyweight.formats.schemes import parse_scheme
from tests.formats.examples import formats, shifts, sizes, weights

FORMATS = formats()
FLAT = {
    name: parse_scheme(name, torch.float32).weight
    for name in (f"W{b}A16{g}{s}" for b in range(2, 9) for g in ("", "_g32") for s in ("", "_asym"))
}

# Root mean square error over the standard deviation of Gaussian weights in groups of 32, rounded
# up. Uniform steps of (largest / 2^(bits-1)) give about 2.1 / 2^(bits-1) / sqrt(12): halved a bit.
CEILING = {2: 0.70, 3: 0.26, 4: 0.105, 5: 0.048, 6: 0.0225, 7: 0.0113, 8: 0.0057}


@pytest.mark.parametrize("bits", CEILING)
@pytest.mark.parametrize("asym", ["", "_asym"])
def test_error_is_below_the_ceiling_of_its_width(bits, asym):
    weight = weights(64, 1024, seed=0)
    out = round_to_nearest(weight, parse_scheme(f"W{bits}A16_g32{asym}").weight).dequantize()
    error = (out - weight).square().mean().sqrt() / weight.std()
    assert CEILING[bits] / 3 < error < CEILING[bits]


# The same of formats that are not uniform integers in groups of 32, rounded up. A float's error is
# relative: 2^-(digits + 1) / sqrt(3) of each weight, less where the scale is no power of two.
CEILINGS = {
    "W8A16_fp8": 0.027, "W8A16_e5m2": 0.054, "W8A16_e3m4": 0.014, "W6A16_fp6_g32": 0.025,
    "W6A16_e3m2_g32": 0.049, "W4A16_fp4_g16": 0.096, "W4A16_fp4_g128": 0.112, "W4A16_fp4": 0.118,
    "W4A16_fp4_tensor": 0.131, "NVFP4A16": 0.098, "MXFP4A16": 0.117, "MXFP4A16_even": 0.114,
    "MXFP4A16_rceil": 0.121, "MXFP4A16_g16": 0.118, "MXFP4A16_g512": 0.126, "MXFP4A16_row": 0.131,
    "MXFP4A16_tensor": 0.133, "MXFP6A16": 0.029, "MXE3M2A16": 0.056, "MXFP8A16": 0.031,
    "MXE5M2A16": 0.056, "MXINT8A16": 0.0078, "MXINT4A16": 0.124, "MXINT4A16_g16": 0.114,
    "MXINT4A16_msfp": 0.124, "MXINT2A16": 0.5, "MXE1M2A16": 0.124, "W4A16_g64_fzp": 0.092,
    "W8A16_tensor": 0.011,
}  # fmt: skip


@pytest.mark.parametrize("name", CEILINGS)
def test_error_is_below_the_ceiling_of_its_format(name):
    weight = weights(64, 1024, seed=0)
    out = round_to_nearest(weight, parse_scheme(name).weight).dequantize()
    error = (out - weight).square().mean().sqrt() / weight.std()
    assert 0.9 * CEILINGS[name] < error < CEILINGS[name]


@pytest.mark.parametrize("bits", range(2, 8))
def test_one_more_bit_halves_the_error(bits):
    weight = weights(64, 1024, seed=1)
    error = lambda width: (
        round_to_nearest(weight, FLAT[f"W{width}A16_g32_asym"]).dequantize() - weight
    ).norm()
    assert error(bits + 1) < 0.6 * error(bits)


@pytest.mark.parametrize("name", FLAT)
@given(seed=st.integers(0, 99), size=sizes, shift=shifts)
def test_no_weight_is_further_off_than_half_a_step(name, seed, size, shift):
    """Asymmetric ones may round their zero point, which moves an end by half a step more."""
    format, weight = FLAT[name], weights(4, 64, seed, size=size, shift=shift)
    scale, zero_point = fit(weight, format)
    out = round_to_nearest(weight, format).dequantize()
    step = plain(scale).repeat_interleave(weight.shape[1] // scale.shape[1], 1)
    reach = 0.5 if zero_point is None else 1.0
    # + 4 ulp: division, product and subtraction each round once in float32
    slack = 4 * torch.finfo(torch.float32).eps * (weight.abs() + step * format.grid.highest)
    # Symmetric grids reach one step further down than up; `fit` spans the shorter side.
    assert ((out - weight).abs() <= reach * step + slack).all()


@pytest.mark.parametrize("name", FORMATS)
@given(seed=st.integers(0, 99), size=sizes, shift=shifts)
def test_zero_stays_zero(name, seed, size, shift):
    format = FORMATS[name]
    if format.zero_point is not None and format.zero_point is not torch.uint8:
        return  # a zero point between two codes cannot stand for zero
    weight = weights(4, 64, seed, size=size, shift=shift)
    weight[:, ::3] = 0
    assert (round_to_nearest(weight, format).dequantize()[:, ::3] == 0).all()


@pytest.mark.parametrize("name", FORMATS)
def test_all_zeros_and_huge_values_stay_finite(name):
    for value in (0.0, 1e-42, 65504.0, 3e38):
        q = round_to_nearest(torch.full((2, 64), value), FORMATS[name])
        assert q.dequantize().isfinite().all()
        assert plain(q.scale).isfinite().all()


@pytest.mark.parametrize("name", [n for n in FORMATS if "level" not in n])
@given(seed=st.integers(0, 99), size=sizes)
def test_snapping_twice_changes_nothing(name, seed, size):
    weight = weights(3, 64, seed, size=size)
    scale, zero_point = fit(weight, FORMATS[name])
    if not isinstance(scale, torch.Tensor) or not isinstance(zero_point, torch.Tensor | None):
        return
    again = snap(scale, zero_point, FORMATS[name])
    assert torch.equal(again[0], scale)
    assert zero_point is None or torch.equal(again[1], zero_point)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_refused(bad):
    weight = weights(2, 64, seed=0)
    weight[1, 5] = bad
    with pytest.raises(NumericalError, match="NaN or Inf"):
        round_to_nearest(weight, FLAT["W4A16_g32"])


def test_a_ragged_group_is_refused_with_advice():
    with pytest.raises(FormatError, match="96 is not a multiple of group_size 64; use 32, 16, 8"):
        round_to_nearest(weights(2, 96, seed=0), parse_scheme("W4A16_g64").weight)


@pytest.mark.parametrize("name", [name for name in GRIDS if name.startswith(("int", "e"))])
def test_every_code_decodes_and_encodes_to_itself(name):
    grid = GRIDS[name]
    codes = torch.arange(2**grid.bits, dtype=torch.uint8)
    codes = codes[grid.decode(codes).isfinite()]  # 8-bit floats keep a few codes for NaN and Inf
    assert torch.equal(grid.encode(grid.decode(codes)), codes)
    ends = torch.tensor([-3e38, 3e38])
    assert grid.decode(grid.encode(ends)).tolist() == [grid.lowest, grid.highest]
    assert grid.middle in grid.decode(codes).tolist()
