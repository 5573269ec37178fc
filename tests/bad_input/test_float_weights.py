"""Awkward weights in formats of floats, microscaling, two levels, and whole tensors: exact, or a
clear error."""

import pytest
import torch

from pennyweight.core import FormatError, plain
from pennyweight.formats.rounding import round_to_nearest
from pennyweight.formats.schemes import parse_scheme
from pennyweight.quantize import QUANTIZERS
from tests.bad_input.test_weights import AWKWARD, COLS, ROWS, inputs, normal, single

SCHEMES = (
    "W8A16_fp8", "W8A16_e5m2_tensor", "W6A16_e3m2_g32", "W4A16_fp4_g16", "W4A16_tensor",
    "W4A16_g32_fzp", "MXFP4A16", "MXFP8A16_row_rceil", "MXINT4A16_g16", "MXINT2A16_tensor_msfp",
    "NVFP4A16",
)  # fmt: skip
GENERIC = ("rtn", "mse_clip", "hqq", "gptq")


@pytest.mark.parametrize("kind", AWKWARD)
@pytest.mark.parametrize("quantizer", GENERIC)
def test_awkward_weights(quantizer, kind):
    weight, stats = AWKWARD[kind](), inputs()
    for name in SCHEMES:
        for dtype in (torch.float16, torch.bfloat16):
            q = QUANTIZERS[quantizer]()(weight, parse_scheme(name, dtype).weight, stats).weight
            rounded, scale = q.dequantize(), plain(q.scale)
            assert rounded.isfinite().all() and scale.isfinite().all(), (name, dtype)
            assert (scale > 0).all(), (name, dtype)
            if name != "W4A16_g32_fzp":  # a zero point between two codes has no zero
                dead = (weight == 0).all(1)
                assert (rounded[dead] == 0).all(), (name, dtype)


@pytest.mark.parametrize("name", [name for name in SCHEMES if not name.endswith("_fzp")])
@pytest.mark.parametrize("sign", [1, -1])
def test_zeros_of_a_one_sided_group_stay_zero(name, sign):
    weight = sign * (normal().abs() + 1)
    weight[:, ::3] = 0
    assert (round_to_nearest(weight, parse_scheme(name).weight).dequantize()[:, ::3] == 0).all()


@pytest.mark.parametrize("name", SCHEMES)
def test_a_constant_is_met_within_half_a_step_of_the_top(name):
    """All its weights are at the end of the range. The ocp rule may clip it, to 6/8 at worst of
    fp4; the range of integers ends half a step beyond the last code."""
    weight = torch.full((ROWS, COLS), 0.37)
    format = parse_scheme(name, torch.float32).weight
    found = round_to_nearest(weight, format).dequantize()
    worst = {"MXFP4A16": 0.25, "MXINT2A16_tensor_msfp": 0.5, "MXINT4A16_g16": 1 / 8}
    allowed = worst.get(name, 1 / 15 if "W4A16_tensor" in name else 1 / 14)
    assert ((found / 0.37 - 1).abs() <= allowed).all()
    if name in ("W8A16_fp8", "W8A16_e5m2_tensor", "W4A16_fp4_g16", "W6A16_e3m2_g32"):
        assert torch.allclose(found, weight, rtol=1e-6)  # the largest weight is the largest code


@pytest.mark.parametrize("name", SCHEMES)
def test_one_column(name):
    """A column of one: a scale for each weight (or one for all), or the group does not divide."""
    format, weight = parse_scheme(name, torch.float32).weight, normal()[:, :1].contiguous()
    if format.group_size is not None:
        with pytest.raises(
            FormatError, match=f"1 is not a multiple of group_size {format.group_size}"
        ):
            round_to_nearest(weight, format)
        return
    found = round_to_nearest(weight, format).dequantize()
    assert found.shape == weight.shape
    if name == "W8A16_fp8":
        assert torch.allclose(found, weight, rtol=1e-6)


def test_a_weight_below_every_scale_rounds_to_zero_or_to_the_smallest_code():
    """2^-127 is the smallest scale of e8m0: what is far below it becomes zero, nothing breaks."""
    for size in (1e-45, 1e-40, 2**-126):
        weight = torch.full((2, 32), size)
        for name in ("MXFP4A16", "MXINT8A16", "MXFP8A16"):
            q = round_to_nearest(weight, parse_scheme(name).weight)
            step = plain(q.scale).max() * {"MXFP4A16": 0.5, "MXINT8A16": 1, "MXFP8A16": 2**-3}[name]
            assert ((q.dequantize() - weight).abs() <= step).all()
            stored = q.scale.to(torch.float8_e8m0fnu).view(torch.uint8)
            assert stored.max() < 255  # never the code of NaN


def test_a_huge_weight_leaves_other_groups_as_they_were():
    for name in ("W8A16_fp8", "W4A16_fp4_g16", "MXFP4A16", "MXINT4A16_g16"):
        format = parse_scheme(name, torch.float32).weight
        alone = round_to_nearest(normal(), format).dequantize()
        found = round_to_nearest(single(1e6), format).dequantize()
        assert torch.equal(alone[1:], found[1:])
        width = format.group_size or COLS
        assert torch.equal(alone[0, width:], found[0, width:])
        assert (found[0, 5] / 1e6 - 1).abs() <= 0.25


def test_a_huge_weight_costs_the_other_groups_of_nvfp4_little():
    """They share the scale of the tensor, but e4m3 keeps its precision over 2^15."""
    format = parse_scheme("NVFP4A16").weight
    found = round_to_nearest(single(1e4), format).dequantize()
    others = normal()[1:]
    assert (found[1:] - others).norm() < 0.1 * others.norm()
    assert (found[0, 5] / 1e4 - 1).abs() < 1 / 16
