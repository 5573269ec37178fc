import math
from pathlib import Path

import pytest
import torch

from pennyweight.core import DataError, UnknownNameError
from pennyweight.evaluate import Settings
from pennyweight.model.attention import AttentionFormats
from pennyweight.model.load import load_model, load_tokenizer
from pennyweight.model.text import documents
from pennyweight.pipeline.evaluate import evaluate
from tests.tiny_llama import save_tiny_llama

DATA = Path(__file__).parents[3] / "shared" / "data"
STORIES = str(DATA / "tinystories" / "val.txt")
ONE_STORY = r"\n\n(?=Once upon a time)"

real = pytest.mark.skipif(not DATA.is_dir(), reason="needs the models and texts in ../shared/data")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    return save_tiny_llama(tmp_path_factory.mktemp("noisy"), noise=0.02)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\n".join(f"line {i} of a short text" for i in range(20)))
    return str(path)


def test_the_report_says_what_was_measured(tiny, noisy, text):
    settings = Settings(context=32, stride=16, seed=3)
    found = evaluate(noisy, against=tiny, data=[text], split_at=r"\n", settings=settings)
    assert (found.model, found.reference) == (str(noisy), str(tiny))
    assert (found.data, found.split_at) == ((text,), r"\n")
    assert found.bos == "auto: the tokenizer adds '<s>'"
    assert (found.documents, found.skipped, found.unit) == (20, 0, "document")
    assert found.bytes == len(Path(text).read_text().replace("\n", ""))
    assert found.settings == settings
    comparison = found.comparison
    assert 0 < comparison.kl_nats.low < comparison.kl_nats.value < comparison.kl_nats.high
    ratio = found.perplexity.value / comparison.perplexity.value
    assert comparison.perplexity_change_percent.value == pytest.approx(100 * (ratio - 1))


def test_a_model_against_itself(tiny, text):
    comparison = evaluate(tiny, against=tiny, data=[text]).comparison
    assert comparison.kl_nats.value == comparison.perplexity_change_percent.value == 0
    assert comparison.top1_agreement_percent.value == 100


def test_the_default_context_is_what_the_model_takes(tiny, text):
    assert evaluate(tiny, data=[text]).settings.context == 64
    with pytest.raises(DataError, match="context is 65, but the model takes 64 tokens"):
        evaluate(tiny, data=[text], settings=Settings(context=65))


def test_the_default_data_needs_no_file(tiny):
    settings = Settings(max_tokens=200)
    found = evaluate(tiny, settings=settings)
    assert found.data == ("stdlib-heldout",)
    assert found.tokens == 200
    assert found == evaluate(tiny, settings=settings)


def test_limits_tokenize_no_more_documents_than_needed(tiny, text, monkeypatch):
    seen = []
    evaluate_module = __import__("pennyweight.pipeline.evaluate", fromlist=["tokenize"])
    tokenize = evaluate_module.tokenize
    monkeypatch.setattr(
        evaluate_module,
        "tokenize",
        lambda document, *rest: seen.append(1) or tokenize(document, *rest),
    )
    settings = Settings(max_tokens=12, document_tokens=5)
    found = evaluate(tiny, data=[text], split_at=r"\n", settings=settings)
    assert (len(seen), found.documents, found.tokens) == (3, 3, 12)


def test_token_ids_need_no_tokenizer(tmp_path):
    model = save_tiny_llama(tmp_path / "model")
    for file in model.glob("tokenizer*"):
        file.unlink()
    (path := tmp_path / "a.json").write_text("[[5, 6, 7, 8], [9, 10, 11], [3]]")
    found = evaluate(model, against=model, data=[str(path)])
    assert (found.tokens, found.documents, found.skipped) == (5, 2, 1)
    assert found.bits_per_byte is found.comparison.bits_per_byte is None
    assert found.bos == "as in the token ids"
    with pytest.raises(DataError, match="taken as they are"):
        evaluate(model, data=[str(path)], settings=Settings(bos="never"))
    path.write_text("[[5, 999]]")
    with pytest.raises(DataError, match="token id 999 is outside the model's vocabulary of 257"):
        evaluate(model, data=[str(path)])


def test_unknown_data_fails_before_a_model_is_loaded():
    with pytest.raises(UnknownNameError, match="stdlib"):
        evaluate("no such model", data=["stdlibb"])


def test_rounded_attention_is_of_the_model_and_is_reported(tiny, text):
    plain = evaluate(tiny, data=[text])
    assert (plain.attention, plain.kv_cache_bits) == (AttentionFormats(), None)
    formats = AttentionFormats(kv_cache="int4_static", qk="int8", calibrate=(text,))
    found = evaluate(tiny, against=tiny, data=[text], attention=formats)
    assert (found.attention, found.kv_cache_bits) == (formats, 4.0)
    assert found.comparison.kl_nats.value > 0
    assert found.comparison.perplexity == plain.perplexity
    assert found.to_dict()["attention"] == {
        "kv_cache": "int4_static", "qk": "int8", "pv": None, "calibrate": [text],
    }  # fmt: skip
    again = evaluate(tiny, against=tiny, data=[text], attention=formats)
    assert again == found
    with pytest.raises(UnknownNameError, match="unknown format 'int9'"):
        evaluate("no such model", attention=AttentionFormats(pv="int9"))


def test_more_bits_of_the_cache_are_nearer():
    """On the bundled model; measured on 20,000 tokens: 0.00006, 0.019 and 1.33 nats."""
    found = [
        evaluate(
            "pylm", against="pylm", settings=Settings(max_tokens=1000),
            attention=AttentionFormats(kv_cache=name),
        ).comparison.kl_nats.value
        for name in ("int8", "int4_g32", "int2_g32")
    ]  # fmt: skip
    assert 0 < 50 * found[0] < found[1] < found[2] / 10


def slow_perplexity(name: str, stories: int) -> tuple[float, int]:
    """One story, one forward pass, one logarithm of a softmax at a time."""
    model, tokenizer = load_model(DATA / "models" / name), load_tokenizer(DATA / "models" / name)
    total = count = 0
    for story in documents(STORIES, split_at=ONE_STORY)[:stories]:
        ids = tokenizer(story.text)["input_ids"][:512]
        assert ids[0] == tokenizer.bos_token_id
        with torch.no_grad():
            probabilities = model(torch.tensor([ids])).logits[0].double().softmax(-1)
        for position in range(1, len(ids)):
            total -= math.log(probabilities[position - 1, ids[position]])
            count += 1
    return math.exp(total / count), count


@real
@pytest.mark.parametrize("name", ["stories260K", "TinyStories-656K"])
def test_real_models_equal_the_slow_loop(name):
    perplexity, tokens = slow_perplexity(name, stories=12)
    settings = Settings(document_tokens=512, max_tokens=tokens)
    found = evaluate(DATA / "models" / name, data=[STORIES], split_at=ONE_STORY, settings=settings)
    assert (found.documents, found.tokens) == (12, tokens)
    # Both are float64 sums of the same float32 logits.
    assert found.perplexity.value == pytest.approx(perplexity, rel=1e-6)


@real
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "perplexity"), [("stories260K", 3.556), ("TinyStories-656K", 21.10)]
)
def test_reference_perplexity(name, perplexity):
    settings = Settings(document_tokens=512, max_tokens=60000)
    found = evaluate(DATA / "models" / name, data=[STORIES], split_at=ONE_STORY, settings=settings)
    assert found.perplexity.value == pytest.approx(perplexity, abs=0.005)
    assert found.perplexity.low < perplexity < found.perplexity.high


@real
def test_models_with_other_tokenizers_do_not_compare():
    models = (DATA / "models" / name for name in ("stories260K", "TinyStories-656K"))
    with pytest.raises(DataError, match="the tokenizers differ in"):
        evaluate(next(models), against=next(models), data=[STORIES])
