import pytest
from hypothesis import given
from hypothesis import strategies as st

from pennyweight.core import DataError
from pennyweight.model.textfiles import Document, TokenDocument
from pennyweight.model.tokens import check_same_tokenizer, describe_bos, tokenize
from tests.byte_tokenizer import BOS, byte_tokenizer

WITH, WITHOUT = byte_tokenizer(adds_bos=True), byte_tokenizer(adds_bos=False)
MERGING = byte_tokenizer(merges=("ab", "Ġa"))


def document(text):
    return Document(name="d", text=text)


@pytest.mark.parametrize(
    ("tokenizer", "bos", "has_bos"),
    [
        (WITH, "auto", True),
        (WITHOUT, "auto", False),
        (WITH, "always", True),
        (WITHOUT, "always", True),
        (WITH, "never", False),
    ],
)
def test_bos_rules(tokenizer, bos, has_bos):
    tokens = tokenize(document("hi"), tokenizer, bos)
    assert tokens.has_bos is has_bos
    assert tokens.ids.tolist().count(BOS) == has_bos
    assert len(tokens.ids) == 2 + has_bos
    assert tokens.byte_counts.tolist() == [0.0] * has_bos + [1.0, 1.0]


def test_pretokenized_documents_follow_the_rule_too():
    given_bos, plain = (TokenDocument(name="d", ids=i) for i in ((BOS, 3, 4), (3, 4)))
    assert tokenize(given_bos, WITHOUT).has_bos
    assert not tokenize(plain, WITH).has_bos
    assert tokenize(plain, WITH, "always").ids.tolist() == [BOS, 3, 4]
    assert tokenize(given_bos, WITH, "never").ids.tolist() == [3, 4]
    assert tokenize(given_bos, WITH).byte_counts.tolist() == [0.0, 1.0, 1.0]


def test_always_needs_a_bos():
    tokenizer = byte_tokenizer(adds_bos=False)
    tokenizer.bos_token = None
    with pytest.raises(DataError, match="has no BOS token"):
        tokenize(document("hi"), tokenizer, "always")


def test_ids_of_another_vocabulary_are_refused():
    with pytest.raises(DataError, match="d: token id 999 is not in"):
        tokenize(TokenDocument(name="d", ids=(3, 999)), WITH)


@given(st.text())
def test_byte_counts_sum_to_the_bytes_of_the_text(text):
    for tokenizer in (WITH, MERGING):
        assert tokenize(document(text), tokenizer).byte_counts.sum() == len(text.encode())


def test_a_merged_token_has_the_bytes_of_its_text():
    assert tokenize(document("ab aé"), MERGING).byte_counts.tolist() == [0, 2, 2, 2, 0]


def test_bos_in_words():
    assert describe_bos(WITH) == "auto: the tokenizer adds '<s>'"
    assert describe_bos(WITHOUT) == "auto: the tokenizer adds none"
    assert describe_bos(WITH, "always") == "always '<s>'"
    assert describe_bos(WITH, "never") == "never"


def test_first_takes_the_beginning():
    tokens = tokenize(document("hello"), WITH).first(3)
    assert (len(tokens.ids), tokens.byte_counts.sum(), tokens.has_bos) == (3, 2, True)


def test_tokenizers_that_differ_are_refused():
    texts = [document("no pair"), document("ab")]
    check_same_tokenizer(WITH, byte_tokenizer(), texts)
    with pytest.raises(DataError, match="differ in 2 tokens"):
        check_same_tokenizer(WITH, MERGING, texts)
    other = byte_tokenizer(merges=("ab", "Ġa"))
    other.backend_tokenizer.model = type(other.backend_tokenizer.model)(
        vocab=other.get_vocab(), merges=[("Ġ", "a")]
    )
    with pytest.raises(DataError, match=r"d: .*cut this text differently .*at token 1"):
        check_same_tokenizer(MERGING, other, texts)


def test_without_a_tokenizer_only_token_ids_can_be_read():
    tokens = tokenize(TokenDocument(name="d", ids=(3, 4)), None)
    assert (tokens.ids.tolist(), tokens.has_bos, tokens.byte_counts.sum()) == ([3, 4], False, 0)
    with pytest.raises(DataError, match="d: is text, and the model has no tokenizer"):
        tokenize(document("hi"), None)
