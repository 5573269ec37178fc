import math

import pytest
import torch

from pennyweight.core import DataError, NumericalError
from pennyweight.evaluate.scores import limit_tokens, score_documents
from tests.evaluate.toys import bigram, mixing, tokens
from tests.reference.perplexity import slow_nll

# After 0: 1 or 2 alike. After 1: mostly 2. After 2: anything.
P = bigram([[0.0, 0.5, 0.5], [0.125, 0.125, 0.75], [0.25, 0.25, 0.5]])
Q = bigram([[0.0, 0.25, 0.75], [0.25, 0.5, 0.25], [0.25, 0.25, 0.5]])
LN2, KL_0 = math.log(2), 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
KL_1 = 0.125 * math.log(0.5) + 0.125 * math.log(0.25) + 0.75 * math.log(3)


def test_sums_by_hand():
    scores = score_documents(P, [tokens(0, 1, 2), tokens(2, 2)], context=8)
    sums = scores.documents
    assert sums.tokens.tolist() == [2, 1]
    assert sums.bytes.tolist() == [4, 2]
    assert sums.nll.tolist() == pytest.approx([LN2 - math.log(0.75), LN2])
    assert not scores.compared
    assert sums.kl.tolist() == sums.reference_nll.tolist() == sums.agreements.tolist() == [0, 0]


def test_comparison_by_hand():
    sums = score_documents(Q, [tokens(0, 1, 2)], reference=P, context=8).documents
    assert sums.nll.tolist() == pytest.approx([4 * LN2])
    assert sums.reference_nll.tolist() == pytest.approx([LN2 - math.log(0.75)])
    assert sums.kl.tolist() == pytest.approx([KL_0 + KL_1])
    assert sums.agreements.tolist() == [0]  # ties go to the first: 1 for P and 2 for Q after 0


def test_a_model_against_itself():
    documents = [tokens(*range(1, 7), name=str(i)) for i in range(3)]
    scores = score_documents(mixing(), documents, reference=mixing(), context=4, stride=2)
    assert scores.windows.kl.tolist() == [0.0] * 6
    assert torch.equal(scores.windows.agreements, scores.windows.tokens)
    assert torch.equal(scores.windows.nll, scores.windows.reference_nll)


@pytest.mark.parametrize("ids", [(0, 3, 1, 4, 1, 5), (2, 6, 5, 3)])
def test_a_document_within_the_context_equals_the_slow_loop(ids):
    sums = score_documents(mixing(), [tokens(*ids)], context=6).documents
    assert (sums.nll.item(), sums.tokens.item()) == pytest.approx(slow_nll(mixing(), list(ids), 6))


def test_stride_one_equals_the_slow_loop():
    ids = [1, 3, 1, 4, 1, 5, 2, 6, 5, 3]
    sums = score_documents(mixing(), [tokens(*ids)], context=4, stride=1).documents
    assert (sums.nll.item(), sums.tokens.item()) == pytest.approx(slow_nll(mixing(), ids, 4))


def test_later_windows_begin_with_bos():
    sums = score_documents(mixing(), [tokens(0, 1, 2, 3, 4, 5)], context=3)
    parts = [slow_nll(mixing(), ids, 9)[0] for ids in ([0, 1, 2], [0, 3, 4], [0, 5])]
    assert sums.windows.nll.tolist() == pytest.approx(parts)
    assert sums.windows.bytes.tolist() == [4, 4, 2]


@pytest.mark.parametrize("context", [2, 3, 5, 9])
@pytest.mark.parametrize("first", [0, 1])
def test_windows_neither_lose_nor_repeat_a_token(context, first):
    """A model that only looks at the last token gives the same sums whatever the windows are."""
    document = tokens(first, 2, 1, 1, 2, 2, 2, 1, 2)
    whole = score_documents(Q, [document], reference=P, context=20)
    for stride in range(1, context + 1):
        if context == 2 and first == 0:
            continue  # BOS is then all that a later window sees
        cut = score_documents(Q, [document], reference=P, context=context, stride=stride)
        assert cut.documents.tokens.tolist() == [8]
        assert cut.documents.bytes.tolist() == whole.documents.bytes.tolist()
        if first == 1 or stride < context - 1:
            assert cut.documents.nll.tolist() == pytest.approx(whole.documents.nll.tolist())
            assert cut.documents.kl.tolist() == pytest.approx(whole.documents.kl.tolist())


def test_short_documents_are_skipped_and_counted():
    scores = score_documents(P, [tokens(), tokens(0), tokens(0, 1), tokens(2)], context=8)
    assert scores.skipped == 3
    assert scores.documents.tokens.tolist() == [1]
    with pytest.raises(DataError, match="none of 2 documents has two tokens"):
        score_documents(P, [tokens(0), tokens()], context=8)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_name_the_document_and_the_model(value):
    def broken(ids):
        logits = P(ids).clone()
        logits[0, ids[0] == 2, 1] = value
        return logits

    documents = [tokens(0, 1), tokens(0, 2, 1, name="story 7")]
    with pytest.raises(NumericalError, match=r"story 7: the model gives .* tokens 0 to 3"):
        score_documents(broken, documents, context=8)
    with pytest.raises(NumericalError, match="story 7: the reference gives"):
        score_documents(P, documents, reference=broken, context=8)


def test_the_limit_cuts_the_last_document():
    documents = [tokens(0, 1, 2), tokens(0), tokens(0, 1, 2, 1, 2), tokens(0, 1)]
    assert [document.ids.tolist() for document in limit_tokens(documents, 4)] == [
        [0, 1, 2],
        [0],
        [0, 1, 2],
    ]
    assert score_documents(P, limit_tokens(documents, 4), context=8).windows.tokens.sum() == 4
    with pytest.raises(DataError, match="max_tokens is 0"):
        limit_tokens(documents, 0)


class Counted(torch.nn.Module):
    """Stands in for a transformers model: keyword arguments, an output with logits."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.kept = []

    def forward(self, input_ids, use_cache=True, logits_to_keep=0):
        assert not use_cache
        self.kept.append(logits_to_keep)
        logits = mixing()(input_ids)[:, -logits_to_keep:]
        return type("Output", (), {"logits": logits})


def test_modules_compute_the_logits_of_scored_tokens_only():
    model, document = Counted().eval(), tokens(1, 2, 3, 4, 5, 6)
    scores = score_documents(model, [document], context=4, stride=2)
    assert model.kept == [4, 3]
    expected = score_documents(mixing(), [document], context=4, stride=2)
    torch.testing.assert_close(scores.windows.nll, expected.windows.nll)
