"""Every recipe that ships runs on the bundled model, and what it makes can be measured."""

from pathlib import Path

import pytest

from pennyweight import api

RECIPES = sorted(Path(__file__).parents[2].glob("recipes/*.toml"))
QUICK = ["calibrate.samples=8", "calibrate.tokens=256"]


@pytest.mark.parametrize("file", RECIPES, ids=lambda path: path.stem)
def test_recipe_runs_and_loses_little(file, tmp_path):
    result = api.quantize(api.load_recipe(file, QUICK), tmp_path / "out")
    logits = result.proof["logits"]  # transformers reads no packed layout
    assert "skipped" in logits or logits["largest_difference"] <= logits["allowed"]
    settings = api.Settings(max_tokens=1000, document_tokens=200)
    found = api.evaluate(tmp_path / "out", against="pylm", settings=settings)
    # Measured for the 4-bit default: 0.02 nats. A broken weight costs whole nats.
    assert found.comparison is not None and 0 < found.comparison.kl_nats.value < 0.1


def test_there_are_recipes():
    assert len(RECIPES) >= 3


def test_four_bits_by_gptq_lose_less_than_by_rounding(tmp_path):
    losses = {}
    for name in ("rtn", "gptq"):
        rule = api.Rule(scheme="W4A16_g128", quantizer=name)
        calibrate = api.Calibrate(samples=32, tokens=256)
        recipe = api.Recipe(model="pylm", rule=(rule,), calibrate=calibrate)
        api.quantize(recipe, tmp_path / name)
        settings = api.Settings(max_tokens=5000, document_tokens=400)
        found = api.evaluate(tmp_path / name, against="pylm", settings=settings)
        assert found.comparison is not None
        losses[name] = found.comparison.kl_nats
    assert losses["gptq"].high < losses["rtn"].low
