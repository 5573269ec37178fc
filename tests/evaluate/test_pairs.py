"""Where a question ends and its answer begins, also where the tokenizer joins the two."""

import json

import torch
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.api.model import TemplateLM

from pennyweight.evaluate.harness import OneSampleModel
from pennyweight.model.load import load_tokenizer
from tests.byte_tokenizer import byte_tokenizer


def model(*merges: str, adds_bos: bool = True) -> OneSampleModel:
    tokenizer = byte_tokenizer(merges=merges, adds_bos=adds_bos)
    return OneSampleModel(torch.nn.Identity(), tokenizer, limit=64)


def pair(lm: OneSampleModel, context: str, continuation: str) -> tuple[list[str], list[str]]:
    asked, answer = lm._encode_pair(context, continuation)
    read = lm.tokenizer.convert_ids_to_tokens
    return read(asked), read(answer)  # type: ignore[return-value]


def test_a_joined_token_is_scored_whole():
    lm = model("ab")
    assert pair(lm, "xa", "b") == (["<s>", "x"], ["ab"])
    assert pair(lm, "xa", "bc") == (["<s>", "x"], ["ab", "c"])
    # As many tokens as "xa" has by itself would leave nothing of "b", and of "bc" only "c".
    assert TemplateLM._encode_pair(lm, "xa", "b")[1] == []


def test_without_bos_the_first_token_is_never_scored():
    assert pair(model("ab", adds_bos=False), "a", "bc") == (["ab"], ["c"])


@given(st.text("abc ", min_size=1, max_size=6), st.text("abc", min_size=1, max_size=6))
def test_where_nothing_is_joined_it_is_the_harness(context, continuation):
    lm = model()
    if context.strip():
        theirs = TemplateLM._encode_pair(lm, context, continuation)
        assert lm._encode_pair(context, continuation) == theirs


@given(st.text("abc", min_size=1, max_size=6), st.text("abc", min_size=1, max_size=6))
def test_nothing_is_lost_or_asked_twice(context, continuation):
    lm = model("ab", "bc")
    asked, answer = lm._encode_pair(context, continuation)
    assert asked + answer == lm.tok_encode(context + continuation)
    read = lm.tokenizer.decode(asked, skip_special_tokens=True)
    assert context.startswith(str(read))


def test_a_real_tokenizer_that_joins_words(shared_data):
    """TinyStories-656K's: cut as the harness does, one of these answers is empty and the evaluation
    ends with an error; the others are not what was asked."""
    tokenizer = load_tokenizer(shared_data / "models" / "TinyStories-656K")
    lm = OneSampleModel(torch.nn.Identity(), tokenizer, limit=512)
    rows = map(json.loads, (shared_data / "tasks" / "copa.jsonl").read_text().splitlines())
    pairs = [(row["query"], f" {choice}") for row in rows for choice in row["choices"]]
    assert any(not TemplateLM._encode_pair(lm, *pair)[1] for pair in pairs)
    for context, choice in pairs:
        asked, answer = lm._encode_pair(context, choice)
        assert answer and asked + answer == lm.tok_encode(context + choice)
        # Of the question only the last words, which the tokenizer joined, are in the answer.
        assert str(tokenizer.decode(answer)).endswith(choice.strip().rpartition(" ")[2])
