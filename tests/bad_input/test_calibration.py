"""Recipes and calibration texts that cannot be used."""

import json
from dataclasses import replace

import pytest
import torch

from pennyweight.core import (
    DataError,
    FormatError,
    NumericalError,
    RecipeError,
    Serial,
    Stats,
    UnknownNameError,
)
from pennyweight.pipeline.quantize import quantize
from pennyweight.pipeline.recipe import load_recipe, parse_recipe
from pennyweight.quantize.factor import inverse_factor
from tests.bad_input.helpers import change_tensors, copy, recipe, refused


@pytest.fixture
def tokens(tmp_path):
    """tokens(lists): a token file of these lists."""

    def write(lists):
        (path := tmp_path / "own.json").write_text(json.dumps(lists))
        return path

    return write


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"modle": "a"}, "unknown key 'modle'; did you mean 'model'?"),
        ({"calibrate": {"sample": 3}}, "calibrate: unknown key 'sample'; did you mean 'samples'?"),
        (
            {"rule": [{}, {"shceme": "W8A8"}]},
            "rule.1: unknown key 'shceme'; did you mean 'scheme'?",
        ),
        ({"rule": [{"options": {"dampp": 1}}]}, "rule.0: gptq: unknown key 'dampp'; did you mean"),
        ({"rule": [{"options": {"damp": "x"}}]}, "rule.0: gptq.damp: Input should be a valid num"),
        ({"rule": [{"options": {"damp": float("nan")}}]}, "gptq.damp: expected a number of 0 or"),
        ({"rule": [{"options": {"steps": -2}}]}, "gptq.steps: expected a number of 0 or more"),
        ({"rule": [{"quantizer": {"damp": 1}}]}, "expected a name beside its options"),
        ({"rule": [{"quantizer": {"name": "rtn"}, "options": 3}]}, "options: expected a table"),
        ({"rule": []}, "at least one rule"),
        ({"calibrate": {"samples": 0}}, "calibrate.samples: expected 1 to"),
        ({"calibrate": {"tokens": 10**30}}, "calibrate.tokens: expected 1 to"),
        ({"seed": -1}, "seed: expected 0 to"),
        ({"compute": "float8"}, "compute: expected auto, float32 or bfloat16, found 'float8'"),
    ],
)
def test_recipes(data, expected):
    with pytest.raises(RecipeError) as raised:
        parse_recipe(data, "r.toml")
    assert str(raised.value).startswith("r.toml: ")
    assert expected in str(raised.value)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"scheme": "W4A16g128"}, "rule.0.scheme: unknown scheme 'W4A16g128'; did you mean"),
        ({"scheme": "W9A16"}, "(W<2-8>A16[_g<size>][_asym], W8A8[_static], W4A8_g128, "),
        ({"quantizer": "gtpq"}, "rule.0: unknown quantizer 'gtpq'; did you mean 'gptq'?"),
    ],
)
def test_names_nobody_knows(rule, expected):
    with pytest.raises(UnknownNameError) as raised:
        parse_recipe({"rule": [rule]}, "r.toml")
    assert str(raised.value).startswith("r.toml: ")
    assert expected in str(raised.value)


def test_overrides_of_the_default_rule(tmp_path):
    (file := tmp_path / "r.toml").write_text("seed = 1")
    found = load_recipe(file, ["rule.0.options.damp=0.5", "calibrate.samples = 3"])
    assert found.rule[0].options == {"damp": 0.5}
    assert found.calibrate.samples == 3
    for text in ["seed", "seed.a=3", "rule.1.match=3", "rule.².match=3", "=", "seed=" + "[" * 2000]:
        with pytest.raises(RecipeError):
            load_recipe(file, [text])


def test_recipe_files_that_are_none(tmp_path):
    with pytest.raises(RecipeError, match="no such recipe"):
        load_recipe(tmp_path / "none.toml")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path)


def test_a_group_that_does_not_divide(tiny_llama, tmp_path):
    found = refused(
        recipe(tiny_llama, scheme="W4A16_g64"), tmp_path / "out", FormatError,
        "model.layers.0.mlp.down_proj.weight", "96 is not a multiple of group_size 64",
    )  # fmt: skip
    assert "use 32, 16, 8" in found


def test_a_rule_that_matches_nothing(tiny_llama, tmp_path):
    refused(
        recipe(tiny_llama, match="*.wq.weight"), tmp_path / "out", RecipeError,
        "rule.0", "'*.wq.weight' matches no tensor", "model.layers.0.self_attn.q_proj.weight",
    )  # fmt: skip
    refused(
        recipe(tiny_llama, match="model.norm*"), tmp_path / "out", RecipeError,
        "model.norm.weight is not quantized (",
    )  # fmt: skip
    good = recipe(tiny_llama)
    refused(replace(good, rule=good.rule * 2), tmp_path / "out", RecipeError, "rule.1", "earlier")
    refused(recipe(tiny_llama, scheme="W16A16"), tmp_path / "out", RecipeError, "nothing to do")


@pytest.mark.parametrize(
    ("lists", "expected"),
    [
        ([], "expected a list of lists"),
        ([[], []], "only empty lists"),
        ([[5]], "found 1 tokens to calibrate on; expected 2"),
        ([[1, 2], [3, -4]], "item 1 is not a list of token ids"),
        ([[1, "a"]], "item 0 is not a list of token ids"),
        ([[1, 2, 128]], "token id 128 is outside the model's vocabulary of 128"),
        ([[1, 2**62]], f"token id {2**62} is outside"),
        ([[1, 2**63]], "item 0 is not a list of token ids"),
    ],
)
def test_token_lists(tiny_llama, tmp_path, tokens, lists, expected):
    refused(recipe(tiny_llama, tokens(lists)), tmp_path / "out", DataError, "own.json", expected)


@pytest.mark.parametrize("text", ["[" * 5000, "[[" + "9" * 5000 + "]]", "[[1,", "\ufeff", ""])
def test_token_files_that_are_not_json(tiny_llama, tmp_path, text):
    (path := tmp_path / "own.json").write_text(text)
    refused(recipe(tiny_llama, path), tmp_path / "out", DataError, "own.json")


def test_texts(tmp_path):
    from tests.tiny_llama import save_tiny_llama

    model = save_tiny_llama(tmp_path / "model")
    for name, content, expected in [
        ("empty.txt", b"", "the file is empty"),
        ("blank.txt", b" \n\n", "only empty texts"),
        ("latin.txt", b"caf\xe9 au lait", "byte 3 (0xe9) is not UTF-8"),
        ("a.pdf", b"%PDF", "files of kind '.pdf' are not read"),
        ("none.txt", None, "no such file"),
    ]:
        if content is not None:
            (tmp_path / name).write_bytes(content)
        asked = recipe(model, tmp_path / name, scheme="W4A16_g8")
        refused(asked, tmp_path / "out", DataError, name, expected)
    asked = recipe(model, "stdlibb", scheme="W4A16_g8")
    refused(asked, tmp_path / "out", UnknownNameError, "did you mean 'stdlib'?")


def test_two_tokens_are_enough(tiny_llama, tmp_path, tokens):
    result = quantize(recipe(tiny_llama, tokens([[5, 9]])), tmp_path / "out")
    assert "1 x 2 used" in result.check.calibration["note"]


@pytest.mark.parametrize("quantizer", ["gptq", "rtn"])
@pytest.mark.parametrize("scheme", ["W4A16_g32", "W8A8"])
def test_activations_that_are_not_finite(tiny_llama, tmp_path, token_file, scheme, quantizer):
    model = copy(tiny_llama, tmp_path / "model")
    name = "model.layers.0.self_attn.v_proj.weight"
    change_tensors(model, lambda tensors: tensors[name].fill_(3e38))
    asked = recipe(model, token_file, scheme=scheme, quantizer=quantizer)
    # rtn needs no data, so that only the proof sees what the weights do to activations.
    where = "model.layers.0" if quantizer == "gptq" else "the model's logits"
    refused(asked, tmp_path / "out", NumericalError, where, "NaN or Inf")


def test_static_scales_of_activations_that_are_not_finite(tiny_llama, tmp_path, token_file):
    model = copy(tiny_llama, tmp_path / "model")
    name = "model.layers.1.mlp.gate_proj.weight"
    change_tensors(model, lambda tensors: tensors[name].fill_(3e38))
    asked = recipe(model, token_file, scheme="W8A8_static", quantizer="rtn")
    refused(asked, tmp_path / "out", NumericalError, "model.layers.1", "down_proj", "NaN or Inf")


def test_a_singular_hessian_is_damped(tiny_llama, tmp_path, tokens):
    """One token over and over: every input is the same vector, and the Hessian has rank one."""
    result = quantize(recipe(tiny_llama, tokens([[7] * 64] * 8)), tmp_path / "out")
    record = json.loads((tmp_path / "out" / "proof.json").read_text())
    assert all(0 < fact["notes"]["damp"] <= 1 for fact in record["linears"].values())
    assert result.proof["weights"]["equal_bit_for_bit"] == 14


def test_the_factor_of_a_singular_hessian():
    factor = lambda gram: inverse_factor(Stats(tokens=1, gram=gram), 0.01, True, Serial())
    assert factor(torch.ones(8, 8)).upper.isfinite().all()
    assert factor(torch.zeros(8, 8)).upper.isfinite().all()
    with pytest.raises(NumericalError, match=r"not positive definite.*more varied, calibration"):
        factor(3 * torch.ones(8, 8) - 2 * torch.eye(8))  # eigenvalues 22 and -2
    with pytest.raises(NumericalError, match="NaN or Inf"):
        factor(torch.full((8, 8), torch.nan))
