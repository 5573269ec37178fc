"""Every recipe that ships runs on the bundled model, and what it makes can be measured."""

import inspect
import json
import shlex
import textwrap
from pathlib import Path

import pytest

from pennyweight import api

ROOT = Path(__file__).parents[2]
RECIPES = sorted(ROOT.glob("recipes/*.toml"))
# The member of pylm's family that has its widths and two of its five blocks; pylm itself takes more
# than a minute.
SMALLER = str(ROOT / "models" / "pylm-0.5m")
MODELS = [SMALLER, pytest.param("pylm", marks=pytest.mark.slow)]
QUICK = ["calibrate.samples=6", "calibrate.tokens=128"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> tuple[str, str]:
    """Two modules of the standard library, to calibrate and to measure on: reading all of it takes
    longer than most recipes."""
    folder = tmp_path_factory.mktemp("texts")
    for name, module in (("calibrate", textwrap), ("measure", shlex)):
        (folder / f"{name}.txt").write_text(inspect.getsource(module))
    return str(folder / "calibrate.txt"), str(folder / "measure.txt")


@pytest.mark.parametrize("model", MODELS, ids=lambda model: Path(model).name)
@pytest.mark.parametrize("file", RECIPES, ids=lambda path: path.stem)
def test_recipe_runs_and_loses_little(file, model, texts, tmp_path):
    recipe = api.load_recipe(file, quick(file, texts, model))
    result = api.quantize(recipe, tmp_path / "out")
    logits = result.proof["logits"]  # transformers reads no packed layout
    assert "skipped" in logits or logits["largest_difference"] <= logits["allowed"]
    settings = api.Settings(max_tokens=1000)
    found = api.evaluate(tmp_path / "out", against=model, data=[texts[1]], settings=settings)
    # Measured for the 4-bit default: 0.02 nats. A broken weight costs whole nats.
    assert found.comparison is not None and 0 < found.comparison.kl_nats.value < 0.1


def quick(file: Path, texts: tuple[str, str], model: str) -> list[str]:
    """Overrides that make a shipped recipe run in seconds."""
    known = [*QUICK, f'calibrate.data=["{texts[0]}"]', f'model="{model}"']
    if not api.load_recipe(file).budget:
        return known
    plan = {"data": [texts[1]], "sense_data": [texts[0]], "max_tokens": 512, "rounds": 2}
    return [*known, 'plan.estimator="fisher"'] + [
        f"plan.{k}={json.dumps(v)}" for k, v in plan.items()
    ]


def test_there_are_recipes():
    assert len(RECIPES) >= 3


@pytest.mark.slow
def test_four_bits_by_gptq_lose_less_than_by_rounding(tmp_path):
    losses = {}
    for name in ("rtn", "gptq"):
        rule = api.Rule(scheme="W4A16_g128", quantizer=name)
        calibrate = api.Calibrate(samples=16, tokens=256)
        recipe = api.Recipe(model="pylm", rule=(rule,), calibrate=calibrate)
        api.quantize(recipe, tmp_path / name)
        settings = api.Settings(max_tokens=5000, document_tokens=400)
        found = api.evaluate(tmp_path / name, against="pylm", settings=settings)
        assert found.comparison is not None
        losses[name] = found.comparison.kl_nats
    assert losses["gptq"].high < losses["rtn"].low
