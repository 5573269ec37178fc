"""Methods that need gradients, from a recipe to files: experts, threads, interruptions."""

import json

import pytest
import torch

from pennyweight.core import RecipeError, UnsupportedError
from pennyweight.model import backward
from pennyweight.pipeline import gradients
from pennyweight.pipeline.check import check
from pennyweight.pipeline.quantize import quantize
from tests.end_to_end.models import build, contents, make_recipe, save, save_tokens

GWQ = {"scheme": "W4A16_g32", "quantizer": {"name": "gwq", "share": 0.05}}


@pytest.fixture
def mixtral(tmp_path):
    """Every token goes to expert 0 or 1, whose router rows are opposite; 2 and 3 score zero."""
    model = build("mixtral", num_experts_per_tok=1)
    with torch.no_grad():
        for layer in model.model.layers:
            rows = layer.mlp.gate.weight
            rows[1], rows[2:] = -rows[0], 0
    return save(model, tmp_path / "source")


def notes(path):
    linears = json.loads((path / "proof.json").read_text())["linears"]
    return {name: (fact["notes"], fact["tokens"]) for name, fact in linears.items()}


@pytest.mark.parametrize("least", [0, 1])
def test_experts_without_tokens_go_by_magnitude_and_are_named(mixtral, tmp_path, least):
    recipe = make_recipe(mixtral, save_tokens(tmp_path), GWQ, min_expert_tokens=least)
    result = quantize(recipe, tmp_path / "out", threads=2)
    for name, (note, tokens) in notes(result.path).items():
        unseen = ".experts.2." in name or ".experts.3." in name
        assert ("fallback" in note) == unseen == (tokens == 0), name
        if unseen:
            assert note["fallback"].startswith("gwq by magnitude")
    assert "gwq by magnitude" in (result.path / "README.md").read_text()


def test_threads_and_interruptions_change_no_byte(mixtral, tmp_path, monkeypatch):
    rule = {"scheme": "W4A16_g32", "quantizer": {"name": "gwq", "residual": "gptq"}}
    recipe = make_recipe(mixtral, save_tokens(tmp_path), rule)
    once = quantize(recipe, tmp_path / "once", threads=1)
    original, calls = gradients.back, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(gradients, "back", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quantize(recipe, tmp_path / "twice", threads=3)
    twice = quantize(recipe, tmp_path / "twice", threads=3)
    assert contents(once.path) == contents(twice.path)
    assert not (tmp_path / "twice.work").exists()


def test_only_so_many_samples_give_gradients(tmp_path, monkeypatch):
    source, seen = save(build("llama"), tmp_path / "source"), []
    original = backward.Tail.gradient

    def counted(self, row, hidden):
        seen.append(row)
        return original(self, row, hidden)

    monkeypatch.setattr(backward.Tail, "gradient", counted)
    data = save_tokens(tmp_path)
    calibrate = {"data": [str(data)], "samples": 8, "tokens": 24, "gradient_samples": 3}
    recipe = make_recipe(source, data, GWQ, calibrate=calibrate)
    quantize(recipe, tmp_path / "out", threads=2)
    assert len(seen) == 3
    with pytest.raises(RecipeError, match="gradient_samples: expected 1 to samples = 8, found 9"):
        make_recipe(source, data, GWQ, calibrate=calibrate | {"gradient_samples": 9})


def test_a_weight_that_a_transform_changed_has_no_gradient(tmp_path):
    source = save(build("llama"), tmp_path / "source")
    data = save_tokens(tmp_path)
    recipe = make_recipe(source, data, GWQ, transform=[{"name": "smoothquant"}])
    with pytest.raises(UnsupportedError, match=r"transform\.0: .*gwq reads the gradient"):
        check(recipe)
    rest = {"scheme": "W2A16_g32", "quantizer": "rtn"}
    awq = {"name": "awq", "match": "*.down_proj.*"}  # its scale goes into up_proj
    recipe = make_recipe(source, data, GWQ | {"match": "*.up_proj.*"}, rest, transform=[awq])
    with pytest.raises(UnsupportedError, match=r"up_proj.*a transform changed it"):
        quantize(recipe, tmp_path / "out", threads=2)
