"""The laws of mixed quantization: constants come back exactly from data without noise, intervals
cover what they promise on data with noise."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pennyweight.core import DataError
from pennyweight.study.scaling.laws import (
    JointLaw,
    Points,
    fit_block_law,
    fit_joint_law,
    fit_size_law,
    reachable,
)

SIZES = [0.5e9, 1.8e9, 4e9, 7e9, 14e9, 32e9]


@given(k=st.floats(-20, -1), c=st.floats(-3, 6))
def test_the_size_law_comes_back_exactly(k, c):
    ratios = [1 - (math.log(size / 1e9) - c) / k for size in SIZES]  # N = exp(k x + c), solved
    law = fit_size_law(SIZES, ratios)
    assert (law.k, law.c) == (pytest.approx(k, rel=1e-9), pytest.approx(c, abs=1e-7))
    assert law.deviation == pytest.approx(0, abs=1e-9)
    assert law.ratio(70e9) == pytest.approx(1 - (math.log(70) - c) / k)


def test_the_size_law_of_the_paper_by_hand():
    """Qwen1.5 at 5 %: k = -11.68, c = 4.83; 7B keeps (4.83 - ln 7) / 11.68 = 24.7 % high."""
    ratios = [1 - (4.83 - math.log(size / 1e9)) / 11.68 for size in SIZES]
    assert 1 - fit_size_law(SIZES, ratios).ratio(7e9) == pytest.approx(0.247, abs=5e-4)


def test_the_prediction_interval_by_hand():
    """Points (ln N, x) = (0, .5), (1, .3), (2, .4): slope -.05, line .45 - .05 ln N, residuals
    .05, -.1, .05, s = sqrt(.015 / 1). At ln N = 4: half width t(.975, 1) s sqrt(1 + 1/3 + 9/2)."""
    law = fit_size_law([1e9, math.e * 1e9, math.e**2 * 1e9], [0.5, 0.7, 0.6])
    assert (law.slope, law.intercept) == (pytest.approx(-0.05), pytest.approx(0.45))
    low, high = law.interval(math.e**4 * 1e9)
    half = 12.7062047 * math.sqrt(0.015) * math.sqrt(1 + 1 / 3 + 9 / 2)
    assert (high - low) / 2 == pytest.approx(half, rel=1e-6)
    assert (high + low) / 2 == pytest.approx(1 - 0.25)


def test_two_models_promise_nothing():
    assert fit_size_law([1e9, 2e9], [0.5, 0.6]).interval(3e9) == (-math.inf, math.inf)


def test_the_prediction_interval_covers_a_further_model():
    """95 % of 1000 further models, far outside the range; 3 standard errors are 2.1 %."""
    generator, hits = np.random.default_rng(0), 0
    true = lambda size: 1 - (0.4 - 0.08 * np.log(np.asarray(size) / 1e9))
    for _ in range(1000):
        law = fit_size_law(SIZES, (true(SIZES) + generator.normal(0, 0.05, len(SIZES))).tolist())
        low, high = law.interval(400e9)
        hits += low <= true(400e9) + generator.normal(0, 0.05) <= high
    assert 929 <= hits <= 971


@given(A=st.floats(0.1, 4), k=st.floats(0.1, 0.6))
def test_the_block_law_comes_back_exactly(A, k):
    blocks = [16.0, 32.0, 64.0, 128.0, 256.0, 512.0]
    law = fit_block_law(blocks, [A * b**k for b in blocks], largest=math.inf)
    assert (law.A, law.k) == (pytest.approx(A), pytest.approx(k))
    assert law.r_squared == pytest.approx(1)
    assert law.loss(1000.0) == pytest.approx(A * 1000**k)


def test_the_block_law_leaves_collapses_and_gains_out():
    law = fit_block_law([16.0, 32.0, 64.0, 128.0], [2.0, 4.0, 5000.0, -1.0])
    assert (law.k, law.A, law.points) == (pytest.approx(1), pytest.approx(0.125), 2)


def points(law: JointLaw, blocks, noise=None) -> Points:
    found = [(n, q, b) for n in SIZES for q in (0.3, 0.6, 0.9) for b in blocks]
    losses = np.array([law.loss(*each) for each in found])
    if noise is not None:
        losses = losses * np.exp(noise(len(losses)))
    n, q, b = map(np.array, zip(*found, strict=True))
    return Points(sizes=n, ratios=q, blocks=b.astype(float), losses=losses)


@given(a=st.floats(0.5, 6), alpha=st.floats(0.05, 1), gamma=st.floats(0.2, 1.2), d=st.floats(0, 20))
def test_the_joint_law_comes_back_exactly(a, alpha, gamma, d):
    law = JointLaw(C=0.3, a=a, alpha=alpha, gamma=gamma, d=d, points=0, deviation=0.0)
    found = fit_joint_law(points(law, (16.0, 32.0, 64.0, 128.0, 512.0)))
    for name, digits in (("C", 1e-3), ("a", 1e-6), ("alpha", 1e-6), ("gamma", 1e-3)):
        assert getattr(found, name) == pytest.approx(getattr(law, name), rel=digits), name
    assert found.d == pytest.approx(d, rel=1e-2, abs=1e-2)
    assert found.loss(70e9, 0.8, 256.0) == pytest.approx(law.loss(70e9, 0.8, 256.0), rel=1e-4)
    q = found.ratio(70e9, 256.0, 5.0)
    assert found.loss(70e9, q, 256.0) == pytest.approx(5.0)


@pytest.mark.parametrize(("blocks", "gamma", "d"), [((32.0,), 0.0, 0.0), ((32.0, 64.0), 0.5, 0.0)])
def test_the_joint_law_does_not_invent_what_the_blocks_do_not_say(blocks, gamma, d):
    law = JointLaw(C=0.3, a=2.0, alpha=0.2, gamma=gamma, d=d, points=0, deviation=0.0)
    found = fit_joint_law(points(law, blocks))
    assert (found.gamma, found.d) == (pytest.approx(gamma, abs=1e-6), 0.0)
    assert math.isclose(found.C, 0.3, rel_tol=1e-5)


def test_the_joint_law_under_noise():
    """36 points with 5 % noise: a and alpha within 4 standard errors of ordinary least squares."""
    law = JointLaw(C=0.3, a=2.0, alpha=0.3, gamma=0.5, d=1.0, points=0, deviation=0.0)
    noise = lambda count: np.random.default_rng(1).normal(0, 0.05, count)
    found = fit_joint_law(points(law, (16.0, 128.0), noise))
    spread = math.sqrt(36) * 0.05
    q, n = np.tile([0.3, 0.6, 0.9], 12), np.log(np.repeat(SIZES, 6))
    assert abs(found.a - 2) < 4 * spread / math.sqrt(36) / math.sqrt(((q - 0.6) ** 2).sum())
    assert abs(found.alpha - 0.3) < 4 * 0.05 / math.sqrt(((n - n.mean()) ** 2).sum())


@pytest.mark.parametrize(
    ("ratios", "losses", "budget", "expected", "at_least"),
    [
        ([0.5, 1.0], [2.0, 10.0], 5.0, 0.5 + 3 / 8 * 0.5, False),
        ([0.5, 1.0], [2.0, 10.0], 1.0, 0.25, False),  # from no loss at 0
        ([1.0, 0.5], [10.0, 2.0], 10.0, 1.0, True),  # nothing is outside
        ([0.25, 0.5, 1.0], [4.0, 2.0, 9.0], 3.0, 0.5, False),  # 4 and 2 pool to 3
        ([0.5, 1.0], [-1.0, 10.0], 5.0, 0.75, False),  # a gain counts as no loss
    ],
)
def test_the_reachable_ratio_by_hand(ratios, losses, budget, expected, at_least):
    found = reachable(ratios, losses, budget)
    assert (found.ratio, found.at_least) == (pytest.approx(expected), at_least)


@given(st.lists(st.floats(0, 50), min_size=2, max_size=6), st.floats(0.1, 20), st.floats(0.1, 20))
def test_a_larger_budget_never_reaches_less(losses, first, second):
    ratios = np.linspace(0.1, 1, len(losses)).tolist()
    low, high = sorted((first, second))
    assert reachable(ratios, losses, low).ratio <= reachable(ratios, losses, high).ratio + 1e-12


@pytest.mark.parametrize(
    ("fit", "message"),
    [
        (lambda: fit_size_law([1e9, 1e9], [0.5, 0.6]), "1 sizes; expected at least 2"),
        (lambda: fit_block_law([16.0, 32.0], [-1.0, 5.0]), "1 block sizes; expected at least 2"),
        (
            lambda: fit_joint_law(Points(
                sizes=np.array([1e9] * 4), ratios=np.array([0.1, 0.2, 0.3, 0.4]),
                blocks=np.array([16.0] * 4), losses=np.array([1.0, 2, 3, 4]),
            )),
            "two or more model sizes",
        ),
    ],
)  # fmt: skip
def test_too_few_points(fit, message):
    with pytest.raises(DataError, match=message):
        fit()
