"""The share that scores highest is kept: exactly, the same way every time, or not at all."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pennyweight.core import NumericalError, RecipeError
from pennyweight.saliency.select import cut, keep_highest

shapes = st.tuples(st.integers(1, 6), st.integers(1, 9))


def scores(shape, seed, distinct=3):  # few values, so that there are ties
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, distinct, shape, generator=generator).float()


def by_sorting(values: list[float], count: int) -> list[bool]:
    """The highest `count`, the first of equals before the others."""
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))[:count]
    return [i in order for i in range(len(values))]


@given(shape=shapes, seed=st.integers(0, 99), share=st.floats(0, 1))
def test_the_highest_are_kept_and_of_equals_the_first(shape, seed, share):
    score = scores(shape, seed)
    flat = score.flatten().tolist()
    kept = keep_highest(score, share)
    assert kept.flatten().tolist() == by_sorting(flat, round(share * len(flat)))
    by_row = keep_highest(score, share, "row")
    count = round(share * shape[1])
    assert by_row.tolist() == [by_sorting(row, count) for row in score.tolist()]


@given(first=shapes, second=shapes, seed=st.integers(0, 99), share=st.floats(0, 1))
def test_one_cutoff_for_many_tensors_is_that_of_all_their_weights(first, second, seed, share):
    a, b = scores(first, seed), scores(second, seed + 1)
    cutoff, kept = cut([a, b], share), []
    for score in (a, b):
        kept += cutoff.keep(score).flatten().tolist()
        cutoff = cutoff.after(score)
    together = a.flatten().tolist() + b.flatten().tolist()
    assert kept == by_sorting(together, round(share * len(together)))


@pytest.mark.parametrize("scope", ["tensor", "row"])
def test_nothing_and_everything(scope):
    score = torch.tensor([[float("inf"), 0.0], [-float("inf"), 2.0]])
    assert not keep_highest(score, 0.0, scope).any()
    assert keep_highest(score, 1.0, scope).all()


@pytest.mark.parametrize("scope", ["tensor", "row"])
def test_a_score_that_is_no_number_is_an_error_with_its_place(scope):
    score = torch.ones(4, 5)
    score[2, 3] = float("nan")
    with pytest.raises(NumericalError, match="NaN at row 2, column 3"):
        keep_highest(score, 0.5, scope)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(RecipeError, match="expected 0 to 1"):
        keep_highest(torch.ones(2, 2), share)
