import sys
import types

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from pennyweight.core import DataError, UnsupportedError
from pennyweight.evaluate.encoder import bertscore, load_encoder
from pennyweight.evaluate.similarity import (
    LOOP_TOKENS,
    Answer,
    first_divergence,
    loop_length,
    rouge_percent,
    similarity,
)


def answer(text, ids=None):
    return Answer(ids=tuple(ids if ids is not None else text.encode()), text=text)


def test_rouge_by_hand():
    # Six and five words, four of them common; in order only 'the cat the mat'.
    one, longest = rouge_percent("mat the cat on the", "the cat sat on the mat")
    assert one == pytest.approx(100 * 2 * 1 * (5 / 6) / (1 + 5 / 6))
    # The longest common subsequence is 'the cat on the': 4 of 5 and 4 of 6.
    assert longest == pytest.approx(100 * 2 * 0.8 * (4 / 6) / (0.8 + 4 / 6))


@given(*[st.text(alphabet="abc XY1_.,\n", max_size=30)] * 2)
def test_rouge_is_the_library_s_on_ascii(text, reference):
    scorer = RougeScorer(["rouge1", "rougeL"])
    found = scorer.score(reference, text)
    words = any(c.isalnum() for c in text + reference)
    expected = (
        [100 * found[name].fmeasure for name in ("rouge1", "rougeL")] if words else [100, 100]
    )
    assert rouge_percent(text, reference) == pytest.approx(tuple(expected))


def test_rouge_reads_other_scripts():
    assert rouge_percent("дом и сад", "дом и лес")[0] == pytest.approx(200 / 3)
    assert rouge_percent("猫", "犬") == (0, 0)


@pytest.mark.parametrize(
    ("a", "b", "place"),
    [("", "", None), ("abc", "abc", None), ("abc", "abd", 2), ("ab", "abc", 2), ("x", "", 0)],
)
def test_first_divergence(a, b, place):
    assert first_divergence(a.encode(), b.encode()) == place


@given(st.binary(max_size=8), st.binary(max_size=8), st.binary(max_size=8))
def test_the_first_divergence_is_the_first(head, a, b):
    place = first_divergence(head + a, head + b)
    if place is None:
        assert a == b
    else:
        assert place >= len(head)
        assert (head + a)[:place] == (head + b)[:place]
        assert (head + a)[place : place + 1] != (head + b)[place : place + 1]


@pytest.mark.parametrize(
    ("ids", "length"),
    [
        ([7] * 16, 16),
        ([7] * 15, 0),  # too short to be a loop
        ([1, 2, 3, *[4, 5, 6] * 6], 18),
        ([1, 2, 3, *[4, 5, 6] * 6, 4, 5], 20),  # breaks off within the phrase
        ([*range(16), *range(16)], 0),  # twice is no loop
        ([*range(6)] * 3, 18),
        ([*range(40)], 0),
    ],
)
def test_loops(ids, length):
    assert loop_length(ids) == length


@given(st.lists(st.integers(0, 2), max_size=40))
def test_a_loop_is_what_it_says(ids):
    length = loop_length(ids)
    if length:
        assert length >= LOOP_TOKENS
        tail = ids[-length:]
        assert any(tail[p:] == tail[:-p] for p in range(1, length // 3 + 1))


def test_the_same_answers_are_alike():
    answers = [answer(f"answer number {i}") for i in range(12)]
    found = similarity(answers, answers)
    assert found.rouge1_percent.value == found.rougeL_percent.low == 100
    assert found.equal_percent.value == 100 > found.equal_percent.low > 70
    assert found.length_drift_percent.value == 0
    assert found.prefix_percent.value == pytest.approx(100)
    assert set(found.first_divergence) == {None}


def test_what_differs_is_counted():
    model = [answer("a b", [1, 2, 3]), answer("", []), answer("x", [9] * 20), answer(" \n", [4])]
    reference = [
        answer("a b", [1, 2, 3]),
        answer("c", [5]),
        answer("x", [9] * 10),
        answer("q", [6]),
    ]
    found = similarity(model, reference)
    assert found.first_divergence == (None, 0, 10, 0)
    assert found.prefix_tokens.value == 13 / 4
    assert found.prefix_percent.value == pytest.approx(100 * 13 / 15)
    assert found.equal_percent.value == 25
    assert (found.model.empty_percent.value, found.reference.empty_percent.value) == (50, 0)
    assert (found.model.looping_percent.value, found.reference.looping_percent.value) == (25, 0)
    assert found.length_drift_percent.value == pytest.approx(100 * (24 - 15) / 15)


def test_answers_come_in_pairs():
    with pytest.raises(DataError, match="1 answers against 2"):
        similarity([answer("a")], [answer("a"), answer("b")])


def test_bertscore_by_hand():
    # Cosines [[1, 0], [0.6, 0.8]]: precision (1 + 0.8) / 2, recall (1 + 0.8) / 2.
    model, reference = (
        torch.tensor([[2.0, 0.0], [3.0, 4.0]]),
        torch.tensor([[1.0, 0.0], [0.0, 5.0]]),
    )
    assert bertscore(model, reference) == pytest.approx(0.9)
    # One token against two: precision 1, recall (1 + 0.6) / 2.
    assert bertscore(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [3.0, 4.0]])) == (
        pytest.approx(2 * 0.8 / 1.8)
    )


def test_an_encoder_s_measures_join_the_others(monkeypatch):
    class Fake:
        def __init__(self, name):
            if name != "here":
                raise OSError("no such encoder")

        def encode(self, texts, convert_to_tensor=False, output_value=None):
            rows = [torch.tensor([[float(len(t)), 1.0]]) for t in texts]
            return rows if output_value else torch.cat(rows)

    module = types.ModuleType("sentence_transformers")
    module.SentenceTransformer = Fake
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    answers = [answer("one"), answer("three")]
    found = similarity(answers, answers, encoder=load_encoder("here"))
    assert found.encoded["sts_percent"].value == pytest.approx(100)
    assert found.encoded["bertscore_f1_percent"].value == pytest.approx(100)
    with pytest.raises(UnsupportedError, match="'gone' cannot be loaded: no such encoder"):
        load_encoder("gone")


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(UnsupportedError, match="pip install sentence-transformers"):
        load_encoder("any")
