import json
import math

import pytest

from pennyweight.core import DataError
from pennyweight.evaluate import Settings, evaluate_tokens
from tests.evaluate.toys import bigram, mixing, tokens

FAIR = bigram([[0.5, 0.5], [0.5, 0.5]])
UNFAIR = bigram([[0.75, 0.25], [0.75, 0.25]])
ONES = [tokens(1, 1, 1) for _ in range(12)]


def test_numbers_by_hand():
    found = evaluate_tokens(UNFAIR, ONES, reference=FAIR)
    assert found.perplexity.value == pytest.approx(4)
    assert found.bits_per_byte.value == pytest.approx(1)  # two bits a token of two bytes
    assert (found.documents, found.tokens, found.bytes, found.windows) == (12, 24, 48, 12)
    comparison = found.comparison
    assert comparison.perplexity.value == pytest.approx(2)
    assert comparison.bits_per_byte.value == pytest.approx(0.5)
    assert comparison.perplexity_change_percent.value == pytest.approx(100)
    assert comparison.kl_nats.value == pytest.approx(math.log(2 / 3) / 2 + math.log(2) / 2)
    assert comparison.top1_agreement_percent.value == 100  # FAIR is tied, and the first counts
    assert found.perplexity.low == pytest.approx(4)  # all documents are alike


def test_a_model_against_itself_has_no_distance():
    documents = [tokens(1, 2, 3, 4 + i % 3) for i in range(15)]
    found = evaluate_tokens(mixing(), documents, reference=mixing()).comparison
    for interval, value in [
        (found.perplexity_change_percent, 0.0),
        (found.kl_nats, 0.0),
        (found.top1_agreement_percent, 100.0),
    ]:
        assert (interval.low, interval.value, interval.high) == (value, value, value)


def test_few_documents_are_resampled_by_windows():
    settings = Settings(context=4)
    documents = [tokens(*(i % 6 for i in range(1, 60))) for _ in range(9)]
    few = evaluate_tokens(mixing(), documents, settings=settings)
    many = evaluate_tokens(mixing(), [*documents, documents[0]], settings=settings)
    assert (few.unit, many.unit) == ("window", "document")
    assert few.perplexity.low < few.perplexity.value < few.perplexity.high
    assert few.perplexity.value == pytest.approx(many.perplexity.value)


def test_one_window_has_a_value_and_no_interval():
    found = evaluate_tokens(FAIR, ONES[:1])
    assert found.perplexity.value == pytest.approx(2)
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["perplexity"]["low"] is plain["perplexity"]["high"] is None
    assert plain["comparison"] is None
    assert plain["settings"]["bos"] == "auto"


def test_tokens_can_be_limited_in_all_and_by_document():
    assert evaluate_tokens(FAIR, ONES, settings=Settings(max_tokens=5)).tokens == 5
    found = evaluate_tokens(FAIR, ONES, settings=Settings(document_tokens=2))
    assert (found.tokens, found.documents) == (12, 12)


def test_the_digest_is_of_what_was_scored():
    first, again, fewer = (
        evaluate_tokens(FAIR, ONES, settings=Settings(max_tokens=limit)) for limit in (9, 9, 8)
    )
    assert first.digest == again.digest != fewer.digest


def test_defaults_are_spelled_out():
    settings = evaluate_tokens(FAIR, ONES).settings
    assert (settings.context, settings.stride) == (512, 512)


def test_a_hopeless_model_overflows_to_infinity():
    never = bigram([[1.0, 1e-30], [1.0, 1e-30]])
    assert evaluate_tokens(lambda ids: never(ids) * 20, ONES).perplexity.value == math.inf


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        (Settings(resamples=10), "resamples is 10"),
        (Settings(document_tokens=1), "document_tokens is 1"),
        (Settings(context=1), "context is 1"),
        (Settings(context=4, stride=5), "stride is 5"),
    ],
)
def test_impossible_settings_are_refused(settings, found):
    with pytest.raises(DataError, match=found):
        evaluate_tokens(FAIR, ONES, settings=settings)
