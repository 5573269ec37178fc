"""From nats to right answers: monotone, through what was measured, by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pennyweight.evaluate import Interval
from pennyweight.study.planning.candidate import Candidate, Measured
from pennyweight.study.planning.score_map import ScoreMap
from tests.study.test_search import NO_FIGURES


def candidate(summed, lost):
    loss = Interval(low=lost - 1, value=lost, high=lost + 1)
    measured = Measured(loss=loss, kl_nats=loss, perplexity_change_percent=loss, file_bytes=0)
    return Candidate(
        schemes={}, summed=summed, predicted=0.0, cost=0.0, figures=NO_FIGURES, measured=measured,
        inside=True,
    )  # fmt: skip


def start(nats):
    return 100 * math.expm1(nats)


def through(*points):
    return ScoreMap.through([candidate(*point) for point in points], start)


def test_before_anything_is_measured_it_is_the_start():
    assert through()(0.01) == pytest.approx(1.005, abs=1e-3)
    assert through((0.0, 0.5))(0.01) == through()(0.01)  # an untouched candidate says nothing


def test_between_two_points_it_is_linear_and_beyond_the_last_in_proportion():
    found = through((0.02, 4.0), (0.01, 1.0))
    assert found(0.005) == pytest.approx(0.5)
    assert found(0.015) == pytest.approx(2.5)
    assert found(0.04) == pytest.approx(8.0)


def test_what_decreases_is_pooled():
    """3 and 1 become 2 and 2; a gain becomes no loss."""
    found = through((0.01, 3.0), (0.02, 1.0), (0.03, 5.0))
    assert [found(0.01), found(0.02), found(0.03)] == pytest.approx([2.0, 2.0, 5.0])
    assert through((0.01, -1.0), (0.02, 2.0))(0.01) == 0.0


points = st.lists(st.tuples(st.floats(1e-6, 10), st.floats(-5, 50)), max_size=6)


@given(points=points, sums=st.lists(st.floats(0, 20), min_size=2, max_size=6))
def test_more_nats_never_predict_a_smaller_loss(points, sums):
    found = through(*points)
    losses = [found(each) for each in sorted(sums)]
    assert losses == sorted(losses) and losses[0] >= 0
    assert found(0.0) == 0.0
