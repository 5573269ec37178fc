"""Sums for `profile`: each against its definition, and two halves against the whole."""

import math
from dataclasses import fields

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pennyweight.core import NumericalError
from pennyweight.model.linear import round_activation
from pennyweight.observe.portrait import compare, portray, spearman, top_channels, top_count
from pennyweight.observe.profile import PER_TOKEN, Moments, observe_profile, sqnr_db
from tests.reference import profile as reference


def activation(seed=0, tokens=13, channels=8, loud=()):
    x = torch.randn(tokens, channels, generator=torch.Generator().manual_seed(seed))
    x[:, list(loud)] *= 40
    return x


def mask(tokens, *positions):
    first = torch.zeros(tokens, dtype=torch.bool)
    first[list(positions)] = True
    return first


@pytest.mark.parametrize("loud", [(), (2,), (0, 7)])
def test_sums_are_what_their_definitions_say(loud):
    x = activation(loud=loud)
    sums = observe_profile(x, mask(13, 0, 5))
    rest = x[[i for i in range(13) if i not in (0, 5)]]
    rows = rest.double().tolist()
    assert sums.first.tokens == 2 and sums.rest.tokens == 11 and sums.all.tokens == 13
    assert sums.rest.absmax.tolist() == rest.abs().amax(0).tolist()
    assert sums.rest.loud.tolist() == [sum(abs(r[c]) > 6 for r in rows) for c in range(8)]
    for name, power in (("sum", 1), ("square_sum", 2), ("cube_sum", 3), ("fourth_sum", 4)):
        expected = [math.fsum(r[c] ** power for r in rows) for c in range(8)]
        assert getattr(sums.rest, name).tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)
    # The reference divides in float64 and the code in float32: near a tie a code may differ by one,
    # which on 13 x 8 random numbers does not happen.
    for found, expected in (
        (sums.rest.token_noise, reference.noise_per_token(rows)),
        (sums.rest.tensor_noise, reference.noise_per_tensor(rows)),
        (sums.noise, reference.noise_per_tensor(x.double().tolist())),
    ):
        assert found.tolist() == pytest.approx(expected, rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("loud", [(), (2,)])
def test_portraits_are_what_their_definitions_say(loud):
    x = activation(tokens=40, loud=loud)
    sums = observe_profile(x, mask(40, 0))
    portrait, rows = portray(sums), x[1:].double().tolist()
    assert portrait.kurtosis == pytest.approx(
        reference.kurtosis(x[1:].flatten().tolist()), rel=1e-6
    )
    for channel in portrait.top:
        values = [row[channel.channel] for row in rows]
        assert channel.kurtosis == pytest.approx(reference.kurtosis(values), rel=1e-6)
        assert channel.rms == pytest.approx(math.sqrt(sum(v * v for v in values) / 39))
    share = reference.top_energy_share(rows, top_count(8))
    assert portrait.top_energy_share == pytest.approx(share)
    absmax = x[1:].abs().amax(0)
    assert portrait.max_to_median == pytest.approx((absmax.max() / absmax.median()).item())
    assert portrait.loud_channels == loud
    assert portrait.first_absmax == pytest.approx(x[0].abs().max().item())


def test_sqnr_weighs_channels_by_what_arrives_behind_them():
    # One loud channel that hardly anything reads: by the input's energy rounding looks harmless.
    x, weight = activation(tokens=512, channels=32, loud=(3,)), torch.randn(64, 32)
    weight[:, 3] /= 40
    sums = observe_profile(x, mask(512))
    rounded = round_activation(x, PER_TOKEN, None)
    exact = reference.output_sqnr_db(*(t.double().numpy() for t in (x, rounded, weight)))
    weighed = portray(sums, weight.square().sum(0)).token_sqnr_db
    plain = portray(sums).token_sqnr_db
    assert weighed == pytest.approx(exact, abs=1.0)  # dB; channels' errors are nearly independent
    assert plain > exact + 10


def test_massive_numbers_are_counted_where_they_are():
    x = torch.full((10, 4), 0.01)
    x[0, 1], x[6, 2], x[7, 2] = 900.0, -120.0, 99.0
    sums = observe_profile(x, mask(10, 0))
    assert (sums.first.massive, sums.rest.massive) == (1, 1)
    x[:, :] += 1.0  # over 100, but not 1000 times the median
    assert observe_profile(x, mask(10, 0)).rest.massive == 0


def equal(a, b):
    for field in fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, Moments):
            equal(x, y)
        elif isinstance(x, torch.Tensor):
            torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)
        else:
            assert x == y


@given(st.integers(0, 10**6), st.lists(st.integers(0, 9), min_size=2, max_size=5))
def test_halves_add_up_to_the_whole_in_any_grouping(seed, lengths):
    """Samples are the unit: a per-tensor scale spans one of them."""
    parts = [activation(seed + i, tokens=n) for i, n in enumerate(lengths)]
    found = [observe_profile(x, mask(len(x), *range(min(1, len(x))))) for x in parts]
    left, right = found[0], found[-1]
    for each in found[1:]:
        left = left.merge(each)
    for each in found[-2::-1]:
        right = each.merge(right)
    equal(left, right)
    whole = torch.cat([x[1:] for x in parts])
    assert left.rest.tokens == len(whole) and left.samples == len(lengths)
    torch.testing.assert_close(left.rest.square_sum, whole.double().square().sum(0))
    if len(whole):
        assert torch.equal(left.rest.absmax, whole.double().abs().amax(0))


def test_a_constant_channel_has_no_kurtosis_and_no_rank():
    x = torch.ones(6, 5)
    sums = observe_profile(x, mask(6, 0))
    assert sums.rest.kurtosis.isnan().all() and math.isnan(sums.rest.tensor_kurtosis)
    assert math.isnan(compare(sums, sums).spearman)
    assert math.isnan(sqnr_db(torch.zeros(3), torch.zeros(3)))
    assert sqnr_db(torch.ones(3), torch.zeros(3)) == math.inf


def test_nan_is_an_error():
    x = activation()
    x[3, 3] = torch.nan
    with pytest.raises(NumericalError, match="NaN or Inf"):
        observe_profile(x, mask(13))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=12))
def test_rank_correlation_is_spearmans(pairs):
    x, y = ([float(v) for v in each] for each in zip(*pairs, strict=True))
    found = spearman(torch.tensor(x).double(), torch.tensor(y).double())
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(reference.spearman(x, y), abs=1e-12)


def test_likeness_of_a_set_with_itself_and_with_its_opposite():
    x = activation(tokens=50, channels=40)
    order = torch.arange(1, 41).float()
    up, down = (observe_profile(x * s, mask(50)) for s in (order.exp2(), order.flip(0).exp2()))
    same, other = compare(up, up), compare(up, down)
    assert (same.top_overlap, same.spearman, same.range_ratio) == (1, pytest.approx(1), 1)
    assert same.top_by_chance == 0.1
    assert other.top_overlap == 0 and other.spearman < -0.9


def test_of_equal_channels_the_first_are_top():
    assert top_channels(torch.tensor([1.0, 2, 2, 2, 2, 2]).double()).tolist() == [1, 2, 3, 4]
    assert [top_count(n) for n in (3, 64, 4096)] == [3, 4, 41]
