"""What every registered transform promises. A new file in transform/ is tested here unasked."""

import pytest
import torch

from pennyweight.core import NumericalError, Stats
from pennyweight.formats.schemes import parse_scheme
from pennyweight.transform import TRANSFORMS
from pennyweight.transform.base import Consumers


def consumers(stats=None, width=64, dead=False) -> Consumers:
    """Two linears that read inputs of which a few channels are loud."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, width, generator=generator)
    x[:, 0] *= 400  # louder than any percentile
    x[:, 1:3] *= 40
    if dead:
        x[:, 5] = 0
    weights = tuple(0.05 * torch.randn(rows, width, generator=generator) for rows in (48, 16))
    seen = Stats(tokens=200, absmax=x.abs().amax(0), abs_sum=x.abs().sum(0), gram=x.T @ x)
    schemes = (parse_scheme("W8A8"), None)
    return Consumers(weights=weights, schemes=schemes, stats=stats or seen, inputs=x[:32])


@pytest.fixture(params=list(TRANSFORMS))
def transform(request):
    return TRANSFORMS[request.param]()


@pytest.mark.parametrize("dead", [False, True])
def test_a_positive_number_for_every_channel(transform, dead):
    scale = transform(consumers(dead=dead))
    assert scale.shape == (64,) and bool(scale.isfinite().all()) and bool((scale > 0).all())


def test_inputs_of_nothing_but_zeros_are_left_sound(transform):
    silent = Stats(tokens=9, absmax=torch.zeros(64), abs_sum=torch.zeros(64))
    scale = transform(consumers(silent))
    assert bool(scale.isfinite().all()) and bool((scale > 0).all())


def test_arguments_are_left_alone_and_the_result_is_the_same(transform):
    given, untouched = consumers(), consumers()
    assert torch.equal(transform(given), transform(given))
    assert all(map(torch.equal, given.weights, untouched.weights))
    assert torch.equal(given.stats.absmax, untouched.stats.absmax)


def test_what_it_needs_is_what_it_reads(transform):
    seen = consumers().stats
    enough = Stats(tokens=seen.tokens, **{name: getattr(seen, name) for name in transform.needs})
    assert torch.equal(transform(consumers(enough)), transform(consumers()))
    with pytest.raises(NumericalError, match="needs calibration data"):
        transform(consumers(Stats(tokens=1)))


def test_loud_channels_are_turned_down_relative_to_quiet_ones(transform):
    scale = transform(consumers(width=256))
    assert scale[0] > 3 * scale[3:].median() and scale[1:3].min() >= scale[3:].median()


def test_it_says_where_it_comes_from(transform):
    assert transform.source and transform.__doc__
