"""Recipes that name a budget: what they may hold, and that they end in a planned result."""

import json
from dataclasses import asdict, fields, replace

import pytest
import torch
from typer.testing import CliRunner

from pennyweight.api import load_recipe
from pennyweight.api import quantize as quantize_within
from pennyweight.cli.main import app
from pennyweight.core import RecipeError
from pennyweight.pipeline.plan import load_plan
from pennyweight.pipeline.quantize import quantize
from pennyweight.pipeline.recipe import Planning, Recipe, parse_recipe
from pennyweight.study.planning.budgeted import wish_of
from tests.conftest import save_tiny_model

BUDGET = """
model = "{model}"
budget = "bits<=7"
engine = "vllm"
calibrate = {{ data = ["{text}"], samples = 4, tokens = 32 }}

[plan]
quantizer = "rtn"
schemes = ["W4A16_g32", "W8A16_g32"]
estimator = "fisher"
sense_data = ["{text}"]
data = ["{fresh}"]
pin = ["*.0.*=W8A16_g32"]
"""


@pytest.fixture
def file(tmp_path, token_file):
    model = save_tiny_model(tmp_path / "llama", initializer_range=0.2)
    path = tmp_path / "budget.toml"
    fresh = tmp_path / "fresh.json"
    fresh.write_text(json.dumps(torch.arange(384).remainder(128).view(8, 48).tolist()))
    path.write_text(BUDGET.format(model=model, text=token_file, fresh=fresh))
    return path


def test_it_is_planned_and_carried_out(file, tmp_path):
    done = CliRunner().invoke(
        app, ["quantize", "--recipe", str(file), "-o", str(tmp_path / "out"), "-q"]
    )
    assert done.exit_code == 0, done.output
    plan = load_recipe(tmp_path / "out.plan" / "plan.toml")
    assert {rule.scheme for rule in plan.rule if ".0." in rule.match} == {"W8A16_g32"}
    assert "W4A16_g32" in {rule.scheme for rule in plan.rule}
    made = quantize_within(load_recipe(file), tmp_path / "again", threads=1)
    weights = [(out / "model.safetensors").read_bytes() for out in (tmp_path / "out", made.path)]
    assert weights[0] == weights[1]
    assert made.proof["size"]["bits_per_weight"] <= 7


def test_candidates_are_transformed_and_trained_like_the_result(file, tmp_path):
    more = """
[[transform]]
name = "awq"
options = { steps = 2 }

[[train]]
name = "signround"
options = { steps = 2 }
"""
    file.write_text(file.read_text() + more)
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["quantize", "--recipe", str(file), "-o", str(out), "-q"])
    assert done.exit_code == 0, done.output
    written = load_recipe(tmp_path / "out.plan" / "plan.toml")
    assert written.transform == load_recipe(file).transform
    assert written.train == load_recipe(file).train
    facts = json.loads((tmp_path / "out.plan" / "plan.frontier.json").read_text())
    assert (facts["transform"], facts["train"]) == (["awq"], ["signround"])
    assert facts["sensed_train"] == []
    assert load_plan(out / "plan.json").digest == facts["candidates"][0]["measured"]["plan"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rule": [{"scheme": "W8A16"}]}, "budget: a plan decides the schemes"),
        ({"train": [{"name": "signround", "options": {"step": 1}}]}, "train.0.*mean 'steps'"),
        ({"plan": {"scheme": ["W8A16"]}}, "plan: unknown key 'scheme'; did you mean 'schemes'"),
        ({"plan": {"rounds": "many"}}, "plan.rounds"),
        ({"budget": "", "plan": {"rounds": 2}}, "plan: says how to keep a budget"),
    ],
)
def test_a_wrong_one_says_where(change, message):
    with pytest.raises(RecipeError, match=message):
        parse_recipe({"model": "pylm", "budget": "kl<=1"} | change)


ASKED = {
    "quantizer": "rtn", "options": {"damp": 0.5}, "schemes": ("W8A16",), "pin": ("*=W8A16",),
    "minimize": "cost", "costs": "c.json", "price_per_hour": 2.0, "sense": "s.json",
    "estimator": "fisher", "estimator_options": {"batch": 2}, "granularity": "layer",
    "also": ("lm_head",), "allocator": "greedy", "allocator_options": {"seed": 2},
    "sense_data": ("a.txt",), "data": ("b.txt",), "split_at": "x", "max_tokens": 9,
    "document_tokens": 8, "limit": 7, "shots": 6, "chat_template": True, "run_code": True,
    "rounds": 5, "sense_train": True,
}  # fmt: skip


def test_nothing_that_can_be_asked_is_lost():
    usual = Recipe(model="pylm", budget="kl<=1")
    assert ASKED.keys() == {field.name for field in fields(Planning)}
    for key, value in ASKED.items():
        asked = replace(usual, plan=replace(Planning(), **{key: value}))
        assert wish_of(asked) != wish_of(usual), key
    assert parse_recipe(asdict(replace(usual, plan=Planning(**ASKED)))).plan == Planning(**ASKED)


def test_what_planning_does_not_know_is_refused():
    with pytest.raises(RecipeError, match="compute: a plan is searched with its default"):
        wish_of(Recipe(model="pylm", budget="kl<=1", compute="float32"))
    with pytest.raises(RecipeError, match="no model"):
        wish_of(Recipe(budget="kl<=1"))
    with pytest.raises(RecipeError, match="'kl<=1' has to be planned for first"):
        quantize(Recipe(model="pylm", budget="kl<=1"), "never")
