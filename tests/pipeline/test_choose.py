"""A rule with several schemes: each tensor gets the one it loses least in, fused ones together."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from pennyweight.core import FormatError, RecipeError, UnknownNameError
from pennyweight.formats.rounding import round_to_nearest
from pennyweight.formats.schemes import parse_scheme
from pennyweight.pipeline import choose as module
from pennyweight.pipeline.check import check_job
from pennyweight.pipeline.job import prepare
from pennyweight.pipeline.recipe import Recipe, Rule, parse_recipe
from tests.end_to_end.models import build, save

INT, FLOAT = "W4A16_g32", "W4A16_fp4_g32"
BOTH = (INT, FLOAT)
# Largest magnitude 7: the steps of int4 are then 14/15 wide, the steps of e2m1 7/6 to 14/6.
EVEN = [-7 + 14 * i / 31 for i in range(32)]  # spread evenly: even steps are better
PEAKED = [7.0, -7.0, *([7 / 12, -7 / 12] * 15)]  # the smallest numbers of e2m1, and its largest


def recipe(source, *schemes, **rule):
    rules = (Rule(scheme=schemes, quantizer="rtn", **rule),)
    return Recipe(model=str(source), rule=rules)


def fill(model, name, pattern, size=0.01):
    weight = model.get_parameter(name)
    row = torch.tensor(pattern).repeat(weight.shape[1] // 32)
    with torch.no_grad():
        weight.copy_(size * row.expand_as(weight))


def squared_error(weight, name, dtype=torch.float32):
    rounded = round_to_nearest(weight, parse_scheme(name, dtype).weight)
    return float((rounded.dequantize() - weight).square().sum())


def chosen(source, *schemes, **rule):
    """Tensor, without the block's name -> scheme, of block 0."""
    plan = prepare(recipe(source, *schemes, **rule)).plan
    start = "model.layers.0."
    return {
        task.tensor.removeprefix(start).removesuffix(".weight"): task.scheme
        for task in plan.tasks
        if task.tensor.startswith(start)
    }


@pytest.fixture
def llama():
    model = build("llama")
    for name in ("self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj"):
        fill(model, f"model.layers.0.{name}.weight", EVEN)
    for name in ("mlp.down_proj", "self_attn.k_proj", "self_attn.v_proj"):
        fill(model, f"model.layers.0.{name}.weight", PEAKED)
    return model


@pytest.mark.parametrize(("size", "winner"), [(0.001, FLOAT), (1.0, INT)])
def test_what_is_fused_gets_one_scheme_by_the_sum_of_errors(llama, tmp_path, size, winner):
    fill(llama, "model.layers.0.self_attn.q_proj.weight", EVEN, size)
    assert chosen(save(llama, tmp_path), *BOTH) == {
        "self_attn.q_proj": winner, "self_attn.k_proj": winner, "self_attn.v_proj": winner,
        "self_attn.o_proj": INT, "mlp.gate_proj": INT, "mlp.up_proj": INT,
        "mlp.down_proj": FLOAT,
    }  # fmt: skip


def test_what_falls_under_another_rule_chooses_for_itself(llama, tmp_path):
    fill(llama, "model.layers.0.self_attn.q_proj.weight", EVEN, 1.0)
    rules = (
        Rule(match="*.q_proj.weight", scheme="W8A16", quantizer="rtn"),
        Rule(scheme=BOTH, quantizer="rtn"),
    )
    made = replace(recipe(save(llama, tmp_path)), rule=rules)
    found = {task.tensor: task.scheme for task in prepare(made).plan.tasks}
    assert found["model.layers.0.self_attn.q_proj.weight"] == "W8A16"
    assert found["model.layers.0.self_attn.k_proj.weight"] == FLOAT


def test_the_experts_of_a_block_get_one_scheme(tmp_path):
    model = build("mixtral")
    for layer in model.model.layers:
        with torch.no_grad():
            down = layer.mlp.experts.down_proj  # [experts, out, in]
            down[1] = 0.001 * torch.tensor(PEAKED).repeat(down.shape[2] // 32)
    job = prepare(recipe(save(model, tmp_path), *BOTH))
    experts = [site for site in job.survey.sites if ".experts." in site.local]
    alone, together = Counter(), Counter()
    for site in experts:
        weight = job.survey.weight(site)
        errors = {name: squared_error(weight, name) for name in BOTH}
        together.update(errors)
        alone[min(BOTH, key=lambda name: errors[name])] += 1
    assert alone[FLOAT] == 2 and together[INT] < together[FLOAT]
    assert {job.plan.by_tensor[site.tensor].scheme for site in experts} == {INT}


def test_equal_errors_go_to_the_first(tmp_path):
    model = build("llama")
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.zero_()
    source = save(model, tmp_path)
    assert set(chosen(source, *BOTH).values()) == {INT}
    assert set(chosen(source, *reversed(BOTH)).values()) == {FLOAT}


def test_pylm_loses_less_than_in_either_format():
    """MoFQ's claim: the mixture is better than both, and on these weights it is a mixture."""
    schemes = ("W4A16_g64", "W4A16_fp4_g64")
    job = prepare(recipe("pylm", *schemes))
    names = Counter(task.scheme for task in job.plan.tasks)
    assert set(names) == set(schemes) and check_job(job).schemes == dict(names)
    losses = Counter()
    for site in job.survey.sites:
        weight, own = job.survey.weight(site), job.plan.by_tensor[site.tensor].scheme
        for name in schemes:
            loss = squared_error(weight, name, torch.bfloat16)
            losses[name] += loss
            losses["chosen"] += loss * (name == own)
    assert losses["chosen"] < min(losses[name] for name in schemes)


def test_weights_are_read_only_where_there_is_a_choice(tmp_path, monkeypatch):
    source = save(build("llama"), tmp_path)
    named = prepare(replace(recipe(source), rule=(Rule(scheme=INT, quantizer="rtn"),))).plan
    monkeypatch.setattr(module, "weight_error", lambda *_: pytest.fail("weights were read"))
    assert prepare(recipe(source, INT)).plan.digest == named.digest
    with pytest.raises(FormatError, match=r"layers.0.*64 is not a multiple of group_size 48"):
        prepare(recipe(source, INT, "W4A16_g48"))


@pytest.mark.parametrize(
    ("rule", "error", "message"),
    [
        ({"scheme": []}, RecipeError, r"rule.0.scheme: expected the name of a scheme"),
        ({"scheme": [INT, "W16A16"]}, RecipeError, "which loses nothing"),
        ({"scheme": [INT, "W4A16_fp4_g"]}, UnknownNameError, r"rule.0.scheme: .*'W4A16_fp4_g'"),
        ({"scheme": [INT, 4]}, RecipeError, r"rule.0.scheme.*valid string"),
        ({"choose": "output_error"}, RecipeError, r"rule.0.choose.*'weight_error'"),
    ],
)
def test_a_choice_that_is_none_is_refused(rule, error, message):
    with pytest.raises(error, match=message):
        parse_recipe({"model": "pylm", "rule": [rule]})
