"""Errors are those of their definitions, mixes are the models they say, and a culprit is found."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pennyweight.core import CheckpointError, DataError, RecipeError
from pennyweight.evaluate import Settings
from pennyweight.model.linear import round_activation
from pennyweight.model.load import load_model
from pennyweight.model.resolve import resolve_model
from pennyweight.model.workers import start_workers
from pennyweight.pipeline.quantize import quantize
from pennyweight.pipeline.recipe import Calibrate, Recipe, Rule
from pennyweight.records import Store
from pennyweight.study.diagnosis.diagnose import Request, diagnose
from pennyweight.study.diagnosis.errors import measure_errors
from pennyweight.study.diagnosis.loss import Losses
from pennyweight.study.diagnosis.pair import Pair
from pennyweight.study.texts import read_texts
from tests.bad_input.helpers import change_tensors, copy
from tests.tiny_llama import save_tiny_llama

SETTINGS = Settings(context=32, resamples=100, document_tokens=33, max_tokens=64)
BAD = "model.layers.1.mlp.up_proj"
GAINS = "model.layers.{}.input_layernorm.weight"


@pytest.fixture(scope="module")
def quantized(tiny_llama, token_file, tmp_path_factory) -> Path:
    """Weights and inputs in 8 bits."""
    recipe = Recipe(
        model=str(tiny_llama), calibrate=Calibrate(data=(str(token_file),), samples=2, tokens=16),
        rule=(Rule(scheme="W8A8", quantizer="rtn"),),
    )  # fmt: skip
    return quantize(recipe, tmp_path_factory.mktemp("quantized") / "out", threads=1).path


def request(model: Path, other: Path, data: Path, **changes) -> Request:
    values = {"data": (str(data),), "settings": SETTINGS, "target": "kl<=1e-9"} | changes
    return Request(reference=str(model), quantized=str(other), **values)


def ruin(model: Path, to: Path, name: str = BAD, levels: float = 1.0) -> Path:
    """A copy with one weight of three levels a row."""

    def change(tensors):
        weight = tensors[f"{name}.weight"]
        scale = weight.abs().amax(1, keepdim=True) / levels
        tensors[f"{name}.weight"] = (weight / scale).round() * scale

    change_tensors(copied := copy(model, to), change)
    return copied


def rewrite(model: Path, to: Path) -> Path:
    """A copy that computes the same with gains halved and what reads them doubled."""

    def change(tensors):
        for block in range(2):
            tensors[GAINS.format(block)] /= 2
            for name in ("q_proj", "k_proj", "v_proj"):
                tensors[f"model.layers.{block}.self_attn.{name}.weight"] *= 2

    change_tensors(copied := copy(model, to), change)
    return copied


def energy(x: torch.Tensor) -> float:
    return x.double().square().sum().item()


def test_errors_are_those_of_their_definitions(tiny_llama, quantized, token_file):
    pair = Pair.load(tiny_llama, quantized)
    texts = read_texts(tiny_llama, pair.reference, [str(token_file)], settings=SETTINGS)
    with start_workers(1) as workers:
        found = measure_errors(pair, texts.tokens, context=32, workers=workers)
    errors = {error.name: error for error in found}
    models = load_model(tiny_llama), load_model(quantized)
    place, sums = "model.layers.1.self_attn.q_proj", dict.fromkeys("oiwat", 0.0)
    output = 0.0
    for document in texts.tokens:  # what enters block 1 is what the model says leaves block 0
        with torch.inference_mode():
            ids = document.ids[None, :32]
            states = [m(input_ids=ids, output_hidden_states=True).hidden_states[1] for m in models]
            norms = [m.get_submodule("model.layers.1.input_layernorm") for m in models]
            x, there = (norm(state) for norm, state in zip(norms, states, strict=True))
            exact, rounds = (m.get_submodule(place) for m in models)
            weight = lambda x, module: x @ module.weight.T
            act = lambda x, rounds=rounds: round_activation(x, rounds.activation, None)
            y = weight(x, exact)
            output += energy(y)
            sums["o"] += energy(weight(act(x), rounds) - y)
            sums["w"] += energy(weight(x, rounds) - y)
            sums["a"] += energy(weight(act(x), exact) - y)
            sums["i"] += energy(weight(there, exact) - y)
            sums["t"] += energy(weight(act(there), rounds) - y)
    error = errors[place]
    measured = (error.own, error.inherited, error.weight, error.activation, error.total)
    # float32 products in another order: differences of 1e-6 of y beside errors of 1e-3 of it
    assert measured == pytest.approx([sums[k] / output for k in "oiwat"], rel=1e-2)
    assert errors["model.layers.0.self_attn.q_proj"].inherited == 0.0
    assert errors["model.layers.0"].inherited == 0.0 < errors["model.layers.0"].own
    assert errors["model.layers.0"].own == errors["model.layers.0"].total
    assert errors["model.layers.1"].inherited > 0


def test_mixes_of_all_and_of_nothing_are_the_models_themselves(tiny_llama, quantized):
    pair, ids = Pair.load(tiny_llama, quantized), torch.arange(16)[None]
    with torch.inference_mode():
        logits = lambda model: model(input_ids=ids).logits
        exact, rounded = (logits(load_model(path)) for path in (tiny_llama, quantized))
        assert not torch.equal(exact, rounded)
        for chosen, expected in (([], exact), (pair.parts, rounded), (pair.parts[:3], None)):
            found = logits(pair.quantize_only(chosen))
            assert expected is None or torch.equal(found, expected)
            opposite = [part for part in pair.parts if part not in chosen]
            assert torch.equal(logits(pair.restore(opposite)), found)
        assert torch.equal(logits(pair.reference), exact)
        assert torch.equal(logits(pair.quantized), rounded)


def test_a_ruined_linear_is_named_first_and_restoring_it_is_enough(
    tiny_llama, token_file, tmp_path
):
    found = diagnose(request(tiny_llama, ruin(tiny_llama, tmp_path / "bad"), token_file), threads=1)
    assert found.parts[0].name == BAD
    assert found.cure.parts == (BAD,)
    assert (found.cure.loss.value, found.rest.kl_nats.value) == (0.0, 0.0)
    assert found.cure.without_last == found.whole.kl_nats == found.parts[0].only_quantized.kl_nats
    others = [part.only_quantized.kl_nats.value for part in found.parts[1:]]
    assert others == [0.0] * 13
    assert found.remedies[0].what == f"More bits for {BAD}."
    assert found.weights_only is None and found.activations_only is None
    json.dumps(found.to_dict(), allow_nan=False)


def test_equal_models_have_nothing_to_mend(tiny_llama, token_file):
    found = diagnose(request(tiny_llama, tiny_llama, token_file, granularity="fused"), threads=1)
    assert found.whole.kl_nats.high == 0.0 and found.cure.parts == ()
    assert all(e.own == e.inherited == e.total == 0.0 for e in found.errors)
    assert found.remedies[0].what == "Nothing needs to be done."


def test_inputs_and_weights_are_told_apart(tiny_llama, quantized, token_file):
    """Rounding both costs about the sum of rounding each: the errors are independent."""
    asked = request(tiny_llama, quantized, token_file, granularity="layer", target="kl<=1e-9")
    found = diagnose(asked, threads=1)
    weights, inputs = found.weights_only.kl_nats.value, found.activations_only.kl_nats.value
    assert 0 < weights < found.whole.kl_nats.value > inputs > 0
    assert weights + inputs == pytest.approx(found.whole.kl_nats.value, rel=0.5)
    assert [part.numbers for part in found.parts] == ["W8A8", "W8A8"]
    assert set(found.cure.parts) == {"model.layers.0", "model.layers.1"}


def test_a_rewritten_model_is_compared_by_blocks(tiny_llama, token_file, tmp_path):
    same = rewrite(tiny_llama, tmp_path / "same")
    found = diagnose(request(tiny_llama, same, token_file), threads=1)
    assert found.rewritten == (GAINS.format(0), GAINS.format(1))
    assert found.whole.kl_nats.value < 1e-9  # a power of two: the same function to the last bit
    assert {error.kind for error in found.errors} == {"block"}
    bad = ruin(same, tmp_path / "bad", BAD)
    found = diagnose(request(tiny_llama, bad, token_file), threads=1)
    assert found.parts[0].name == "model.layers.1" and found.cure.parts == ("model.layers.1",)
    assert found.parts[1].only_quantized.kl_nats.value < 1e-9
    with pytest.raises(RecipeError, match=r"input_layernorm.* ask for --granularity layer"):
        diagnose(request(tiny_llama, bad, token_file, granularity="matmul"), threads=1)


def test_what_differs_outside_the_blocks_is_said(tiny_llama, token_file, tmp_path):
    bad = ruin(tiny_llama, tmp_path / "bad", "lm_head")
    found = diagnose(request(tiny_llama, bad, token_file), threads=1)
    assert found.outside == ("lm_head.weight",)
    assert found.cure.parts is None
    assert found.rest.kl_nats == found.whole.kl_nats == found.cure.loss
    assert found.remedies[0].what == "Keep lm_head as in the reference."


def test_measurements_are_kept_and_not_made_again(tiny_llama, token_file, tmp_path, monkeypatch):
    bad, file = ruin(tiny_llama, tmp_path / "bad"), tmp_path / "records.sqlite"
    asked = request(tiny_llama, bad, token_file, granularity="layer")
    first = diagnose(asked, records=file, threads=1)
    store = Store.existing(file)
    kept = store.find(study="diagnose")
    whole = store.find(metric="kl_nats", subject={"mix": "quantized"})
    assert [record.value for record in whole] == [first.whole.kl_nats.value]
    monkeypatch.setattr(Losses, "_measure", lambda *_: pytest.fail("measured again"))
    assert diagnose(asked, records=file, threads=2) == first
    assert store.find(study="diagnose") == kept


def test_models_that_do_not_belong_together_are_refused(tiny_llama, save_tiny, token_file):
    narrow = save_tiny("llama", intermediate_size=64)
    with pytest.raises(CheckpointError, match=r"down_proj.weight: \[64, 96\] in .* \[64, 64\] in"):
        diagnose(request(tiny_llama, narrow, token_file), threads=1)
    shallow = save_tiny("llama", num_hidden_layers=1)
    with pytest.raises(CheckpointError, match=r"layers.1.*and missing in"):
        diagnose(request(tiny_llama, shallow, token_file), threads=1)
    with pytest.raises(CheckpointError, match=r"is a LlamaForCausalLM and .* is a Mistral"):
        diagnose(request(tiny_llama, save_tiny("mistral"), token_file), threads=1)


def test_other_tokenizers_are_refused(tmp_path):
    model, other = (save_tiny_llama(tmp_path / name) for name in "ab")
    text = tmp_path / "text.txt"
    text.write_text("some text that both can read " * 20)
    file = other / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match="the tokenizers differ in"):
        diagnose(request(model, other, text), threads=1)


def test_wrong_wishes_are_refused_before_anything_is_loaded(tiny_llama, token_file):
    for changes, said in (
        ({"target": "bits<=4"}, r"expected a loss, kl<=0.01 or ppl<=1%"),
        ({"granularity": "channel"}, "expected one of auto, matmul, fused, layer"),
    ):
        with pytest.raises(RecipeError, match=said):
            diagnose(request(tiny_llama, Path("/nowhere"), token_file, **changes))


def test_a_text_of_one_window_has_no_interval(tiny_llama, tmp_path):
    (file := tmp_path / "short.json").write_text("[[5, 6, 7]]")
    with pytest.raises(DataError, match="2 tokens are one window, which has no interval"):
        diagnose(request(tiny_llama, tiny_llama, file), threads=1)


def test_experts_have_an_error_of_their_own_alone(save_tiny, token_file, tmp_path):
    """Their tokens are chosen by a router, which may choose otherwise in the other model."""
    model = save_tiny("mixtral", num_local_experts=4, num_experts_per_tok=2, intermediate_size=32)
    other = copy(model, tmp_path / "other")
    file = other / "model.safetensors"
    tensors = load_file(file)
    key = next(k for k in tensors if "experts" in k)
    tensors[key] = tensors[key] + 0.01
    save_file(tensors, file, {"format": "pt"})
    found = diagnose(request(model, other, token_file, granularity="layer"), threads=1)
    errors = {e.name: e for e in found.errors}
    experts = [e for name, e in errors.items() if ".experts." in name]
    assert len(experts) == 24 and all(e.inherited is e.total is None for e in experts)
    assert any(e.own and e.own > 0 for e in experts)
    assert all(math.isfinite(e.total) for e in found.errors if e.kind == "block")


def test_on_pylm_a_two_bit_linear_among_eight_bit_ones(tmp_path):
    bad = "model.layers.2.mlp.down_proj.weight"

    def change(tensors):
        for name, weight in tensors.items():
            if "_proj" in name:
                levels = 1 if name == bad else 127
                scale = weight.float().abs().amax(1, keepdim=True) / levels
                tensors[name] = ((weight.float() / scale).round() * scale).to(weight.dtype)

    change_tensors(made := copy(resolve_model("pylm"), tmp_path / "made"), change)
    asked = Request(
        reference="pylm", quantized=str(made), target="kl<=2e-3", granularity="fused",
        settings=Settings(max_tokens=64, document_tokens=17),
    )  # fmt: skip
    found = diagnose(asked, threads=1)
    assert found.parts[0].tensors == (bad,)
    assert found.cure.parts == (bad.removesuffix(".weight"),)
    assert found.cure.loss.high <= 2e-3 < found.cure.without_last.high
    assert found.remedies[0].what == "More bits for model.layers.2.mlp.down_proj."
    assert "gptq instead of rounding" in found.remedies[1].what
    worst = max((e for e in found.errors if e.kind == "linear"), key=lambda e: e.own or 0.0)
    assert f"{worst.name}.weight" == bad and worst.own > 0.1
