"""Inputs rounded as they are served: per token, per group, or with what was fixed before."""

import pytest
import torch

from pennyweight.formats.schemes import parse_scheme
from pennyweight.model.linear import round_activation, static_input_scale


def inputs(tokens=6, channels=256, seed=0):
    x = torch.randn(2, tokens, channels, generator=torch.Generator().manual_seed(seed))
    x[0, 1, 5] = 40.0  # an outlier channel of one token
    return x


def activation(name):
    return parse_scheme(name).activation


DYNAMIC = ["W8A8", "W8A8_fp8", "W8A8_fp8_block", "MXFP4", "MXFP8", "MXINT4", "MXFP4_row"]


@pytest.mark.parametrize("name", DYNAMIC)
def test_tokens_do_not_see_each_other(name):
    x = inputs()
    whole = round_activation(x, activation(name), None)
    for sample in range(2):
        for token in range(6):
            alone = round_activation(x[sample, token], activation(name), None)
            assert torch.equal(alone, whole[sample, token])


def test_fp8_is_what_torch_makes_of_the_same_scale():
    x = inputs()
    scale = x.abs().amax(-1, keepdim=True) / 448
    expected = (x / scale).to(torch.float8_e4m3fn).float() * scale
    assert torch.equal(round_activation(x, activation("W8A8_fp8"), None), expected)
    groups = x.view(2, 6, 2, 128)
    scale = groups.abs().amax(-1, keepdim=True) / 448
    expected = ((groups / scale).to(torch.float8_e4m3fn).float() * scale).view(x.shape)
    assert torch.equal(round_activation(x, activation("W8A8_fp8_block"), None), expected)


def test_an_outlier_stays_within_its_group():
    """Why groups: with a scale per token it takes the precision of all channels."""
    x = inputs()
    for coarse, fine in [("MXINT4_row", "MXINT4"), ("MXFP4_row", "MXFP4_g16")]:
        error = lambda name: (round_activation(x, activation(name), None) - x)[0, 1, 64:].norm()
        assert error(fine) < 0.5 * error(coarse)


def test_the_largest_calibrated_input_is_kept_by_a_static_scale():
    x = inputs()
    absmax = x.abs().amax((0, 1))
    for name, top in [("W8A8_static", 127), ("W8A8_fp8_static", 448)]:
        scale = static_input_scale(absmax, activation(name))
        stored = activation(name).format.scale
        assert torch.equal(scale, (absmax.max() / top).to(stored).float().view(1, 1))
        rounded = round_activation(x, activation(name), scale)
        # The stored dtype of the scale rounds once: half an ulp of float16 of 40, and of float32.
        assert (rounded[0, 1, 5] - 40).abs() <= 40 * torch.finfo(stored).eps


def test_nvfp4_fixes_the_scale_of_the_tensor_and_finds_those_of_groups():
    x, format = inputs(), activation("NVFP4")
    scale = static_input_scale(x.abs().amax((0, 1)), format)
    assert scale.shape == (1, 1) and torch.frexp(scale).mantissa == 0.5
    assert 224 * 6 * scale < 40 <= 448 * 6 * scale
    rounded = round_activation(x, format, scale)
    # By hand: e4m3 of (largest of 16 / 6) in units of the fixed scale, then e2m1 of the rest.
    group = x.view(2, 6, 16, 16)
    wanted = (group.abs().amax(-1, keepdim=True) / 6 / scale).to(torch.float8_e4m3fn).float()
    units = wanted * scale
    levels = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    nearest = ((group / units).abs()[..., None] - levels).abs()
    best = nearest.amin(-1)
    assert torch.allclose((rounded.view(group.shape) - group).abs() / units, best, atol=1e-5)
    assert torch.equal(round_activation(x[1], format, scale), rounded[1])
    large = round_activation(100 * x, format, scale)  # beyond what was calibrated: saturates
    assert large.abs().max() == 448 * 6 * scale


@pytest.mark.parametrize("name", [*DYNAMIC, "NVFP4"])
def test_zero_tokens_stay_zero(name):
    x = inputs() * 0
    form = activation(name)
    scale = None if form.dynamic else static_input_scale(x.abs().amax((0, 1)), form)
    assert (round_activation(x, form, scale) == 0).all()
