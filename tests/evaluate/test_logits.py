import pytest
import torch
from torch.nn import functional

from pennyweight.core import DataError
from pennyweight.evaluate import logits as module
from pennyweight.evaluate.logits import last_logits, token_divergence, token_nll
from tests.reference.perplexity import slow_divergence


def test_nll_by_hand():
    logits = torch.tensor([[0.5, 0.25, 0.25], [0.125, 0.125, 0.75]]).log()
    nll = token_nll(logits, torch.tensor([0, 1]))
    torch.testing.assert_close(nll, torch.tensor([2.0, 8.0]).log().double(), rtol=1e-6, atol=0)


def test_divergence_by_hand():
    p, q = [0.5, 0.25, 0.25], [0.25, 0.25, 0.5]
    kl, agreement = token_divergence(*(torch.tensor([each]).log() for each in (p, q)))
    assert kl.item() == pytest.approx(slow_divergence(p, q), rel=1e-6)
    assert kl.item() == pytest.approx(0.25 * 0.6931472, rel=1e-6)
    assert agreement.item() == 0


def test_divergence_is_of_the_reference_from_the_model():
    p, q = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
    expected = functional.kl_div(q, p, log_target=True, reduction="sum")
    assert token_divergence(p, q)[0].item() == pytest.approx(expected.item(), rel=1e-6)
    assert token_divergence(q, p)[0].item() != pytest.approx(expected.item(), rel=1e-2)


def test_a_model_does_not_diverge_from_itself_even_if_tokens_are_masked():
    logits = torch.randn(5, 9, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    logits[:, 7:] = -torch.inf
    kl, agreement = token_divergence(logits, logits)
    assert kl.tolist() == [0.0] * 5
    assert agreement.tolist() == [1.0] * 5


def test_small_divergences_survive():
    """In float32 the terms, near 1e-7, would drown in their rounding errors."""
    p = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q = p + 1e-6 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)).double()
    # Second order: half the variance under p of the difference of the logits.
    weight, difference = p.softmax(-1), q - p
    mean = (weight * difference).sum(-1, keepdim=True)
    expected = (weight * (difference - mean) ** 2).sum(-1) / 2
    torch.testing.assert_close(token_divergence(p, q)[0], expected, rtol=1e-3, atol=0)


def test_the_chunk_size_changes_nothing(monkeypatch):
    p, q = torch.randn(2, 10, 6, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(10) % 6
    whole = token_nll(p, targets), *token_divergence(p, q)
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 13)
    for a, b in zip(whole, (token_nll(p, targets), *token_divergence(p, q)), strict=True):
        assert torch.equal(a, b)


def test_vocabularies_that_differ_are_refused():
    with pytest.raises(DataError, match="model 5, reference 4"):
        token_divergence(torch.zeros(1, 4), torch.zeros(1, 5))


def test_only_the_logits_asked_for_are_kept():
    logits = torch.randn(1, 6, 3)
    assert torch.equal(last_logits(lambda ids: logits, torch.zeros(1, 6).long(), 2), logits[0, 4:])
