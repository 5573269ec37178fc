import pytest
from hypothesis import given
from hypothesis import strategies as st

from pennyweight.core import DataError
from pennyweight.evaluate.windows import windows


def cut(length, has_bos, context, stride):
    found = windows(length, has_bos, context, stride)
    return [(window.start, window.stop, window.scored, window.needs_bos) for window in found]


def test_the_two_pictures_of_the_docstring():
    assert cut(9, False, 6, 3) == [(0, 6, 5, False), (3, 9, 3, False)]
    assert cut(11, True, 6, 6) == [(0, 6, 5, False), (6, 11, 5, True)]


def test_short_documents_are_one_window_or_none():
    assert cut(6, True, 6, 6) == cut(6, False, 6, 1) == [(0, 6, 5, False)]
    assert cut(1, True, 6, 6) == cut(0, False, 6, 6) == []


def test_the_last_window_gets_no_more_context_than_the_others():
    assert cut(10, False, 6, 3)[-1] == (6, 10, 1, False)  # a full one would be 6:12


@given(st.integers(2, 60), st.booleans(), st.integers(2, 20), st.data())
def test_every_token_but_the_first_is_scored_once_within_the_context(length, bos, context, data):
    stride = data.draw(st.integers(1, context))
    scored = []
    for start, stop, count, needs_bos in cut(length, bos, context, stride):
        assert start >= (1 if needs_bos else 0)
        assert count < stop - start + needs_bos <= context  # something comes before what is scored
        scored += range(stop - count, stop)
    assert scored == list(range(1, length))


@given(st.integers(2, 60), st.integers(2, 20), st.data())
def test_the_sliding_window_of_the_transformers_guide(length, context, data):
    """Its loop, from "Perplexity of fixed-length models"; stride = context differs on purpose."""
    stride = data.draw(st.integers(1, context - 1))
    expected, previous = [], 0
    for begin in range(0, length, stride):
        end = min(begin + context, length)
        # Labels are shifted inside the model, so the first window scores one token less.
        expected.append((begin, end, end - previous - (begin == 0), False))
        previous = end
        if end == length:
            break
    assert cut(length, False, context, stride) == expected


@pytest.mark.parametrize(("context", "stride"), [(1, 1), (4, 0), (4, 5)])
def test_impossible_windows_are_refused(context, stride):
    with pytest.raises(DataError, match="expected"):
        cut(9, False, context, stride)
