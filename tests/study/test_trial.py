"""A trial is the evaluation of the model that the mix describes, and costs no more."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pennyweight.core import FormatError, RecipeError
from pennyweight.evaluate import Settings, evaluate_tokens
from pennyweight.model.load import load_model
from pennyweight.model.workers import start_workers
from pennyweight.pipeline.quantize import quantize
from pennyweight.study.texts import read_texts
from pennyweight.study.trial import Reference, Swaps, Trials
from tests.study.benches import SCHEMES, ingredients, make_bank

SETTINGS = Settings(context=32, resamples=200)
O_PROJ, UP = "model.layers.0.self_attn.o_proj.weight", "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def bank(tiny_llama, token_file, tmp_path_factory, workers):
    schemes = (*SCHEMES, "W8A8_static", "MXINT4")
    folder = tmp_path_factory.mktemp("bank")
    return make_bank(tiny_llama, token_file, folder, workers, schemes=schemes)


@pytest.fixture(scope="module")
def texts(bank, token_file):
    return read_texts(bank.path, load_model(bank.path), [str(token_file)], settings=SETTINGS)


@pytest.fixture
def trials(bank, texts, workers, tmp_path):
    return Trials(Swaps.load(bank), texts, workers, tmp_path)


def test_an_untouched_model_has_lost_exactly_nothing(trials):
    trial = trials.measure({})
    assert trial.kl.value == trial.kl.high == 0.0
    assert trial.evaluation.comparison.perplexity_change_percent.value == 0.0


def test_equals_the_evaluation_of_the_files_that_quantize_writes(
    trials, bank, texts, tiny_llama, token_file, tmp_path
):
    scheme = "W8A8_static"  # weight, rounded input, and its calibrated scale
    given_ = ingredients(tiny_llama, token_file)
    made = quantize(given_.recipe([given_.rule(scheme)]), tmp_path / "out", threads=1)
    model, reference = load_model(made.path), load_model(tiny_llama)
    expected = evaluate_tokens(model, texts.tokens, reference=reference, settings=SETTINGS)
    found = trials.measure(dict.fromkeys(bank.survey.by_tensor, scheme)).evaluation
    assert found.comparison == expected.comparison
    assert (found.perplexity, found.digest) == (expected.perplexity, expected.digest)


def test_only_what_changes_is_read(trials, bank):
    everything = dict.fromkeys(bank.survey.by_tensor, "W4A16_g32")
    first = trials.measure(everything)
    assert trials.swaps.reads == 14
    trials.measure(everything | {UP: "W3A16_g32"})
    assert trials.swaps.reads == 15
    trials.measure({O_PROJ: "W16A16"})
    assert trials.swaps.reads == 15
    assert trials.measure({}).kl.value == 0.0
    assert trials.measure(everything).evaluation == first.evaluation
    assert trials.passes == 5


def test_the_reference_shares_memory_with_what_is_untouched(trials):
    trials.swaps.put({UP: "W3A16_g32"})
    name = trials.swaps.places[O_PROJ]
    weights = [m.get_submodule(name).weight for m in (trials.swaps.model, trials.swaps.reference)]
    assert weights[0].data_ptr() == weights[1].data_ptr()
    name = trials.swaps.places[UP]
    weights = [m.get_submodule(name).weight for m in (trials.swaps.model, trials.swaps.reference)]
    assert not torch.equal(*weights)


@settings(max_examples=8)
@given(st.dictionaries(st.sampled_from([O_PROJ, UP]), st.sampled_from([*SCHEMES, "MXINT4"])))
def test_the_order_of_trials_changes_nothing(shared, mix):
    trials, seen = shared
    found = trials.measure(mix).kl
    assert seen.setdefault(tuple(sorted(mix.items())), found) == found
    assert found.value > 0 or not mix


@pytest.fixture(scope="module")
def shared(bank, texts, workers, tmp_path_factory):
    return Trials(Swaps.load(bank), texts, workers, tmp_path_factory.mktemp("scratch")), {}


def test_trials_are_paired_by_document(trials):
    worse, better = trials.measure({UP: "W3A16_g32"}), trials.measure({UP: "W8A16_g32"})
    difference = worse.kl_difference(better)
    assert difference.value == pytest.approx(worse.kl.value - better.kl.value)
    assert 0 < difference.low < difference.value < difference.high
    zero = worse.kl_difference(worse)
    assert zero.low == zero.value == zero.high == 0.0
    # the sums are what the mean is made of
    assert float(worse.sums.kl.sum() / worse.sums.tokens.sum()) == worse.kl.value


def test_threads_change_no_bit(bank, texts, tmp_path):
    found = []
    for threads in (1, 3):
        with start_workers(threads) as pool:
            found.append(Trials(Swaps.load(bank), texts, pool, tmp_path).measure({UP: "MXINT4"}))
    assert found[0].evaluation == found[1].evaluation


def test_the_reference_is_kept_up_to_a_limit_and_the_same_beyond_it(bank, tmp_path):
    model, calls = load_model(bank.path), []
    model.register_forward_hook(lambda *_: calls.append(1))
    one_window = 8 * 128 * 4  # tokens, vocabulary, bytes
    reference = Reference(model, tmp_path, limit=one_window)
    ids = [torch.arange(n, n + 8)[None] for n in (0, 50)]
    first = [reference(each) for each in ids]
    again = [reference(each) for each in ids]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len(calls) == 3  # the first window was kept, the second was computed twice


def test_another_text_shares_the_model(trials, bank, tmp_path):
    (file := tmp_path / "more.json").write_text("[[5, 6, 7, 8, 9], [1, 2, 3, 4]]")
    other = trials.on(read_texts(bank.path, trials.swaps.model, [str(file)], settings=SETTINGS))
    assert other.swaps is trials.swaps
    mix = {UP: "W3A16_g32"}
    assert other.measure(mix).evaluation.tokens == 7
    with pytest.raises(RecipeError, match="different texts"):
        other.measure(mix).kl_difference(trials.measure(mix))


def test_one_window_has_a_value_and_no_interval(trials, bank, tmp_path):
    (file := tmp_path / "short.json").write_text("[[5, 6, 7]]")
    texts = read_texts(bank.path, trials.swaps.model, [str(file)], settings=SETTINGS)
    kl = trials.on(texts).measure({UP: "W3A16_g32"}).kl
    assert kl.value > 0 and math.isnan(kl.low)


def test_mixes_that_cannot_be_are_refused_and_change_nothing(trials, bank):
    trials.swaps.put({O_PROJ: "MXINT4"})
    with pytest.raises(RecipeError, match=r"model.norm.weight: is not a linear"):
        trials.swaps.put({"model.norm.weight": "W4A16_g32"})
    with pytest.raises(RecipeError, match="W2A16 is not in the bank, which holds W3A16_g32"):
        trials.swaps.put({UP: "W4A16_g32", O_PROJ: "W2A16"})
    assert trials.swaps.now == {O_PROJ: "MXINT4"}


def test_a_scheme_that_the_tensor_cannot_take(tiny_llama, token_file, texts, workers, tmp_path):
    bank = make_bank(tiny_llama, token_file, tmp_path, workers, schemes=("W4A16_g64",))
    down = "model.layers.1.mlp.down_proj.weight"
    with pytest.raises(FormatError, match=f"{down}: W4A16_g64: in_features 96"):
        Swaps.load(bank).put({down: "W4A16_g64"})
