import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pennyweight.evaluate import intervals
from pennyweight.evaluate.intervals import (
    Interval,
    bootstrap_ratios,
    expanded_level,
    student_quantile,
    wilson_percent,
)

SEED = 0


def column(*values):
    return torch.tensor([values], dtype=torch.float64)


def test_the_value_is_the_ratio_of_the_sums():
    (interval,) = bootstrap_ratios(column(1, 2, 6), column(1, 2, 3), seed=SEED)
    assert interval.value == 1.5
    assert 1 <= interval.low <= interval.value <= interval.high <= 2


def test_equal_units_leave_no_doubt():
    (interval,) = bootstrap_ratios(column(3, 6, 9), column(1, 2, 3), seed=SEED)
    assert interval == Interval(low=3.0, value=3.0, high=3.0)


def test_one_unit_says_nothing():
    (interval,) = bootstrap_ratios(column(3), column(2), seed=SEED)
    assert interval.value == 1.5
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)


def test_same_seed_same_interval_and_chunks_change_nothing(monkeypatch):
    numerators = torch.rand(2, 50, generator=torch.Generator().manual_seed(1)).double()
    first = bootstrap_ratios(numerators, torch.ones_like(numerators), seed=SEED)
    monkeypatch.setattr(intervals, "CHUNK_ELEMENTS", 50 * 128)
    assert bootstrap_ratios(numerators, torch.ones_like(numerators), seed=SEED) == first
    assert bootstrap_ratios(numerators, torch.ones_like(numerators), seed=1) != first


def test_the_expanded_level_is_wider_for_few_units_and_usual_for_many():
    # Hesterberg 2014: norm.cdf(-sqrt(n / (n - 1)) * t.isf(0.025, n - 1)).
    assert expanded_level(10, 0.95) == pytest.approx(0.00855, abs=5e-5)
    assert expanded_level(10**6, 0.95) == pytest.approx(0.025, abs=1e-5)


@pytest.mark.parametrize(
    ("freedom", "table"), [(3, 3.1824), (5, 2.5706), (9, 2.2622), (30, 2.0423), (1000, 1.9623)]
)
def test_student_quantiles_are_those_of_the_tables(freedom, table):
    assert student_quantile(0.025, freedom) == pytest.approx(-table, rel=2e-3)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_intervals_are_scipy_s(share):
    count, total = share
    ends = stats.binomtest(count, total).proportion_ci(method="wilson")
    found = wilson_percent(count, total)
    assert (found.low, found.high) == pytest.approx((100 * ends.low, 100 * ends.high), abs=1e-9)
    assert found.value == pytest.approx(100 * count / total)


@given(st.lists(st.floats(0, 100), min_size=2, max_size=20))
def test_the_value_lies_within(values):
    (interval,) = bootstrap_ratios(column(*values), torch.ones(1, len(values)).double(), seed=SEED)
    rounding = 1e-12 * max(values)
    assert interval.low - rounding <= interval.value <= interval.high + rounding


def test_pairing_cancels_what_both_models_share():
    generator = torch.Generator().manual_seed(SEED)
    hard, effect = torch.randn(2, 100, generator=generator, dtype=torch.float64)
    first, second = 10 + 3 * hard, 10 + 3 * hard + 0.1 + 0.05 * effect
    numerators = torch.stack([first, second, second - first])
    a, b, difference = bootstrap_ratios(numerators, torch.ones_like(numerators), seed=SEED)
    assert a.high > b.low  # the two intervals overlap ...
    assert 0 < difference.low < 0.1 < difference.high  # ... and yet the difference is certain
    assert difference.high - difference.low < (a.high - a.low) / 20


def coverage(units: int, trials: int) -> float:
    """How often the interval holds the true difference of two models on skewed documents.

    Documents have log-normal lengths; a token of the second model costs 0.1 nats more, give or
    take a document's own effect, which grows with its length to the half as sums of tokens do.
    """
    generator = torch.Generator().manual_seed(SEED)
    shape = (trials, units)
    tokens = (5 + 0.7 * torch.randn(shape, generator=generator, dtype=torch.float64)).exp()
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    difference = 0.1 * tokens + 0.5 * tokens.sqrt() * noise
    # 100 trials share their draws, which is fast, and leaves each trial's coverage what it is.
    found = [
        interval
        for seed, (d, t) in enumerate(zip(difference.split(100), tokens.split(100), strict=True))
        for interval in bootstrap_ratios(d, t, seed=seed)
    ]
    return sum(interval.low <= 0.1 <= interval.high for interval in found) / trials


@pytest.mark.parametrize("units", [10, 100])
def test_coverage_of_a_known_difference(units):
    # Of 1,000 trials at 95 % the standard deviation is 0.7 %.
    assert 0.93 <= coverage(units, trials=1000) <= 0.97
