"""Each transform against its paper's formula, channel by channel, and on inputs made by hand."""

import math

import pytest
import torch

from pennyweight.transform.awq import AWQ
from pennyweight.transform.clip_smooth import ClipSmooth
from pennyweight.transform.judge import output_error
from pennyweight.transform.log_equalize import LogEqualize
from pennyweight.transform.smoothquant import SmoothQuant
from tests.contracts.test_transforms import consumers


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8, 1.0])
def test_smoothquant(alpha):
    given = consumers()
    scale = SmoothQuant(alpha=alpha)(given)
    for j in range(64):
        loud = given.stats.absmax[j].item()
        weight = max(w[:, j].abs().max().item() for w in given.weights)
        assert scale[j].item() == pytest.approx(loud**alpha / weight ** (1 - alpha), rel=1e-5)


def test_logarithmic_equalization():
    given = consumers()
    for absmax, scale in zip(given.stats.absmax.tolist(), LogEqualize()(given), strict=True):
        assert scale.item() == pytest.approx(absmax / math.log2(2 + absmax), rel=1e-5)


@pytest.mark.parametrize("share,loud", [(0.005, 0), (0.02, 1), (0.04, 3)])
def test_clip_smoothing_touches_what_lies_above_the_percentile(share, loud):
    given = consumers()
    scale, absmax = ClipSmooth(share=share)(given), given.stats.absmax
    limit = absmax.sort(descending=True).values[int(share * 64 + 1.5) - 1]
    assert int((scale > 1).sum()) == loud
    assert torch.allclose(absmax / scale, absmax.clamp(max=limit))


def test_clip_smoothing_leaves_a_silent_input_alone():
    given = consumers()
    given.stats.absmax.mul_(1e-7)
    assert (ClipSmooth()(given) == 1).all()


def test_awq_takes_the_best_of_its_trials():
    given, awq = consumers(), AWQ(steps=10)
    mean = given.stats.abs_sum / given.stats.tokens
    errors = [output_error(given, awq.normalised(mean, step / 10)) for step in range(10)]
    assert output_error(given, awq(given)) == min(errors) < errors[0]


def test_loud_channels_cost_a_naive_rounding_dearly():
    """The claim of SmoothQuant on its own ground: a few loud channels, int8 inputs per token."""
    given = consumers()
    naive = output_error(given, torch.ones(64))
    assert output_error(given, SmoothQuant()(given)) < 0.5 * naive
