"""Scales of ZeroQuant-FP: equal to the formulas, exact as fp8, and as good as they are said."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pennyweight.core import FormatError, UnknownNameError
from pennyweight.formats import GRIDS
from pennyweight.formats.compressed_tensors import layout
from pennyweight.formats.rounding import round_to_nearest
from pennyweight.formats.schemes import parse_scheme
from pennyweight.formats.shifted import Powers, shifted
from pennyweight.formats.storage import bits_per_weight
from pennyweight.model.checkpoint import Checkpoint
from pennyweight.model.resolve import resolve_model
from tests.formats.examples import sizes, weights
from tests.reference import zeroquant_fp as oracle

NEAR = (1 - oracle.Fraction(1, 2**20), 1, 1 + oracle.Fraction(1, 2**20))
POWERS = [name for name in GRIDS if name.startswith("pow2")]


def uneven(rows, cols, seed, size=0.02):
    """Groups of 16 that differ by up to 2^7 in size, as float16 holds them."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.exp2(-7 * torch.rand(rows, cols // 16, generator=generator))
    return (weights(rows, cols, seed, size=size) * steps.repeat_interleave(16, 1)).half().float()


@pytest.mark.parametrize("down", [False, True])
@given(seed=st.integers(0, 999))
def test_m2_is_its_formula(seed, down):
    weight = uneven(2, 64, seed)
    q = round_to_nearest(weight, shifted(16, down))
    for row, groups in enumerate(weight.view(2, 4, 16).tolist()):
        free = oracle.scales(groups)
        top = q.scale.scale[row].item()
        assert abs(top / max(free) - 1) <= 2**-24  # rounded to float32, in which it is stored
        for s, found in zip(free, q.scale.dequantize()[row].tolist(), strict=True):
            # a ratio within that rounding of a power of two may fall on either side of it
            wanted = {oracle.m2(s * f, max(free), down) for f in NEAR}
            assert min(abs(found / float(w) - 1) for w in wanted) <= 2**-23
    values = zip(weight.flatten().tolist(), q.dequantize().flatten().tolist(), strict=True)
    steps = q.scale.dequantize().repeat_interleave(16, 1).flatten().tolist()
    for (x, found), scale in zip(values, steps, strict=True):
        exact = oracle.nearest(x, oracle.Fraction(scale))
        # nearest up to the rounding of x / scale to float32, which may turn a near tie over
        assert abs(found - x) <= abs(exact - x) + 2**-22 * abs(x)


@given(seed=st.integers(0, 99))
def test_m1_is_its_formula_and_has_its_other_name_without_inputs(seed):
    weight, format = uneven(2, 64, seed), parse_scheme("W4A8_fp4_g16_pow2").weight
    q = round_to_nearest(weight, format)
    free = [s for row in weight.view(2, 4, 16).tolist() for s in oracle.scales(row)]
    assert q.scale.flatten().tolist() == [float(oracle.m1(s)) for s in free]
    assert format == parse_scheme("MXFP4A16_g16_rceil").weight


@pytest.mark.parametrize("name", ["W4A16_fp4_g16_shift", "W4A8_fp4_g16_shift_down"])
@given(seed=st.integers(0, 99), size=sizes)
def test_a_weight_over_its_rows_factor_is_a_number_of_e4m3(name, seed, size):
    """The claim that the constraint is for: fp4 becomes fp8 by adding to exponents."""
    weight = uneven(3, 64, seed, size=min(size, 100.0))
    weight[0, 16:32] *= 2.0**-20  # k has an end
    q = round_to_nearest(weight, parse_scheme(name).weight)
    shifts = q.scale.format.grid.decode(q.scale.codes).repeat_interleave(16, 1)
    eight = 64 * shifts * q.format.grid.decode(q.codes)
    assert torch.equal(eight.to(torch.float8_e4m3fn).float(), eight)
    assert torch.equal(eight / 64 * q.scale.scale, q.dequantize())


@given(seed=st.integers(0, 99))
def test_nothing_is_clipped_unless_asked(seed):
    weight = uneven(2, 64, seed)
    largest = lambda name: (
        round_to_nearest(weight, parse_scheme(name).weight).scale.dequantize() * 6
    )
    amax = weight.view(2, 4, 16).abs().amax(2)
    ratio = amax / largest("W4A16_fp4_g16_shift")
    assert (ratio <= 1 + 1e-6).all() and (ratio > 0.5 - 1e-6).all()
    ratio = amax / largest("W4A16_fp4_g16_shift_down")
    assert (ratio >= 1 - 1e-6).all() and (ratio < 2 + 1e-6).all()


@pytest.mark.parametrize("name", POWERS)
def test_every_code_decodes_and_encodes_to_itself(name):
    grid, codes = GRIDS[name], torch.arange(16, dtype=torch.uint8)
    values = grid.decode(codes)
    assert values.tolist() == [0.0, *(2.0**-k for k in range(14, -1, -1))]
    assert torch.equal(grid.encode(values), codes)
    between = torch.tensor([0.0, 1e-30, 2.0**-14 * 1.01, 0.3, 0.75, 1.001, 3e38])
    up = [0, 2.0**-14, 2.0**-13, 0.5, 1, 1, 1]
    down = [0, 0, 2.0**-14, 0.25, 0.5, 1, 1]
    assert grid.nearest_(between).tolist() == (down if grid.down else up)


def test_bits_by_hand():
    for name in ("W4A16_fp4_g128_shift", "W4A8_fp4_g128_shift_down"):
        format = parse_scheme(name).weight
        assert bits_per_weight(format, (8, 4096)) == 4 + 4 / 128 + 32 / 4096
    assert bits_per_weight(parse_scheme("W4A8_fp4_g128_pow2").weight, (8, 4096)) == 4 + 8 / 128


def test_what_a_name_says():
    for name in ("W4A8_fp4_g64_pow2", "W4A8_fp4_g64_shift", "W4A16_fp4_g64_shift_down"):
        scheme = parse_scheme(name)
        assert scheme.name == name and scheme.weight.group_size == 64
        if "A8" in name:
            inputs = scheme.activation
            assert inputs.dynamic and inputs.format == parse_scheme("W8A8_fp8").activation.format
        else:
            assert scheme.activation is None
    for name in (
        "W4A16_fp4_g64_pow2",
        "W4A8_fp4_g64_pow2_down",
        "W4A16_fp4_shift",
        "W4A8_fp6_g9_shift",
    ):
        with pytest.raises(UnknownNameError):
            parse_scheme(name)


@pytest.mark.parametrize("name", ["W4A8_fp4_g32_pow2", "W4A16_fp4_g16_shift"])
def test_it_is_not_mistaken_for_mxfp4_or_nvfp4(name):
    with pytest.raises(FormatError, match="no layout for the scheme"):
        layout(parse_scheme(name))


def test_on_real_weights_m2_is_better_than_m1_if_nothing_is_clipped():
    checkpoint = Checkpoint.open(resolve_model("pylm"))
    names = ("W4A16_fp4_g64", "W4A16_fp4_g64_shift", "MXFP4A16_g64_rceil")
    losses = dict.fromkeys((*names, "W4A16_fp4_g64_shift_down"), 0.0)
    for tensor in checkpoint.tensors:
        if tensor.endswith("_proj.weight"):
            weight = checkpoint.read(tensor).float()
            for name in losses:
                rounded = round_to_nearest(weight, parse_scheme(name, torch.float32).weight)
                losses[name] += float((rounded.dequantize() - weight).square().sum())
    found = [losses[name] for name in names]
    assert found == sorted(found)  # free scales, M2, M1
    assert losses["W4A16_fp4_g64_shift_down"] > 1.5 * losses["MXFP4A16_g64_rceil"]


def test_a_grid_knows_its_ends():
    assert (Powers(4).lowest, Powers(4).highest, Powers(4).reach) == (0, 1, 1)
