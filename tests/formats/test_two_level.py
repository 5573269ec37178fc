"""Scales and zero points that are quantized themselves: bytes, exactness, and what they cost."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pennyweight.core import FormatError, plain
from pennyweight.formats.rounding import fit, round_to_nearest
from pennyweight.formats.schemes import parse_scheme
from pennyweight.formats.storage import bits_per_weight
from tests.formats.examples import shifts, sizes, weights

NAMES = ("W3A16_g16_bilevel", "W2A16_g32_bilevel", "W4A16_g64_dq", "W3A16_g16_dq")


def test_bits_by_hand():
    """SpQR: b + (bs + bz) / g1 + 64 / (g1 g2). QLoRA: b + 8 / g, and two float32 per row."""
    bits = lambda name, cols: bits_per_weight(parse_scheme(name).weight, (4, cols))
    assert bits("W3A16_g16_bilevel", 2048) == 3 + 6 / 16 + 64 / (16 * 16)
    assert bits("W4A16_g64_dq", 2048) == 4 + 8 / 64 + 64 / 2048


@pytest.mark.parametrize("name", NAMES)
def test_the_second_level_costs_little(name):
    """Against the same groups with plain float16 scales and zero points."""
    bits, group = name[1], name.split("_")[1]
    plainly = f"W{bits}A16_{group}" + ("_fzp" if "bilevel" in name else "")
    weight = weights(32, 1024, seed=0)
    error = lambda n: (
        round_to_nearest(weight, parse_scheme(n).weight).dequantize() - weight
    ).norm()
    # 3 bits for 16 scales that spread over a factor of 2: each is off by up to 5 %.
    assert error(name) < (1.12 if "bilevel" in name else 1.01) * error(plainly)


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 99), size=sizes, shift=shifts)
def test_scales_are_positive_and_weights_finite(name, seed, size, shift):
    format, weight = parse_scheme(name).weight, weights(2, 1024, seed, size=size, shift=shift)
    weight[:, :64] = 0
    scale, _ = fit(weight, format)
    assert (plain(scale) > 0).all()
    assert round_to_nearest(weight, format).dequantize().isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_each_scale_is_off_by_half_a_step_of_the_second_level(name):
    format, weight = parse_scheme(name).weight, weights(16, 1024, seed=1)
    scale, _ = fit(weight, format)
    plainly = f"W{name[1]}A16_{name.split('_')[1]}" + ("_fzp" if "bilevel" in name else "")
    wanted, _ = fit(weight, parse_scheme(plainly, torch.float32).weight)
    step = plain(scale.scale).repeat_interleave(scale.codes.shape[1] // scale.scale.shape[1], 1)
    # A 16-bit zero point of up to 256 steps is itself rounded: to 1/8 of a step.
    assert ((plain(scale) - wanted).abs() <= 0.63 * step).all()


def test_an_all_zero_group_does_not_widen_the_second_level():
    format, weight = parse_scheme("W3A16_g16_bilevel").weight, weights(1, 256, seed=2)
    weight[:, :16] = 0
    scale, _ = fit(weight, format)
    others = (weight.view(16, 16).amax(1) - weight.view(16, 16).amin(1))[1:] / 7
    assert scale.scale.item() == pytest.approx((others.max() - others.min()).item() / 7, rel=1e-3)


def test_groups_that_do_not_fill_a_second_level_are_refused():
    with pytest.raises(FormatError, match=r"has 8 groups of 16.* multiple of the 16 that share"):
        round_to_nearest(torch.zeros(2, 128), parse_scheme("W3A16_g16_bilevel").weight)
