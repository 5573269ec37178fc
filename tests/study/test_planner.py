"""The verb from a wish to a plan that runs: inside the budget, repeatable; and what it refuses."""

import json
import tomllib
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from pennyweight.cli.main import app
from pennyweight.core import BudgetError, CheckpointError, DataError, RecipeError, UnknownNameError
from pennyweight.evaluate import Settings
from pennyweight.pipeline.evaluate import evaluate
from pennyweight.pipeline.quantize import quantize
from pennyweight.pipeline.recipe import Training, load_recipe
from pennyweight.pipeline.tasks import TaskSettings
from pennyweight.records import Store
from pennyweight.study.planning.budget import parse_budget
from pennyweight.study.planning.pins import parse_pin
from pennyweight.study.planning.planner import plan
from pennyweight.study.planning.wish import Wish
from tests.conftest import save_tiny_model
from tests.engines import Sent
from tests.study.benches import ingredients

SCHEMES = ("W4A16_g32", "W8A16_g32", "W16A16")
SETTINGS = Settings(context=32, resamples=200)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """Token ids that no unit is measured on."""
    ids = torch.randint(128, (12, 48), generator=torch.Generator().manual_seed(1))
    path = tmp_path_factory.mktemp("fresh") / "fresh.json"
    path.write_text(json.dumps(ids.tolist()))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Weights large enough that rounding them is far above the noise of bfloat16."""
    folder = tmp_path_factory.mktemp("model") / "llama"
    return save_tiny_model(folder, initializer_range=0.2)


@pytest.fixture(scope="module")
def wish(model, token_file, fresh):
    return Wish(
        ingredients=ingredients(model, token_file), budget=parse_budget("kl<=0.05"),
        schemes=SCHEMES, rounds=3, sense_data=(str(token_file),), data=(str(fresh),),
        settings=SETTINGS,
    )  # fmt: skip


@pytest.fixture(scope="module")
def planned(wish, tmp_path_factory):
    folder = tmp_path_factory.mktemp("planned")
    return plan(wish, folder / "plan.toml", work=folder / "work", threads=1)


def known(wish, planned, **changes):
    """The wish with the table that was measured before."""
    return replace(wish, sense=planned.path.parent / "work" / "sense.json", **changes)


def test_the_chosen_candidate_is_inside_and_cheaper_than_the_finest(planned, wish):
    chosen = planned.chosen
    assert chosen.inside and chosen.measured.loss.high <= wish.budget.limit
    assert chosen in planned.outcome.candidates
    assert chosen.figures.bits_per_weight < 32 and chosen.figures.size_bytes == chosen.cost
    cheaper = [one for one in planned.outcome.candidates if one.cost < chosen.cost]
    assert not any(one.inside for one in cheaper)
    assert planned.noise is not None and 0 < planned.noise < wish.budget.limit


def test_the_plan_is_a_recipe_that_makes_what_was_measured(planned, model, fresh, tmp_path):
    recipe = load_recipe(planned.path)
    assert recipe == planned.recipe and recipe.engine == "vllm"
    result = quantize(recipe, tmp_path / "out", threads=1)
    found = evaluate(tmp_path / "out", against=model, data=(str(fresh),), settings=SETTINGS)
    assert found.comparison is not None
    kl = planned.chosen.measured.kl_nats
    assert found.comparison.kl_nats.value == pytest.approx(kl.value, rel=1e-4)
    size = sum(file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors"))
    assert size == planned.chosen.measured.file_bytes
    quantized = {t for t, s in result.check.schemes.items() if s}
    assert quantized <= set(SCHEMES)


def test_comments_say_what_each_unit_loses(planned):
    text = planned.path.read_text()
    for unit in planned.table.units:
        assert f"# {unit.name}: predicted" in text
    assert "95 % interval" in text and "quantization ratio" in text
    rules = tomllib.loads(text)["rule"]
    assert len(rules) == 14 and {rule["scheme"] for rule in rules} <= set(SCHEMES)


def test_the_file_beside_holds_every_candidate(planned):
    facts = json.loads((planned.path.parent / "plan.frontier.json").read_text())
    assert len(facts["candidates"]) == len(planned.outcome.candidates)
    one = facts["candidates"][facts["chosen"]]
    assert one["inside"] and one["measured"]["kl_nats"]["high"] <= 0.05
    assert one["figures"]["quantization_ratio"] >= one["figures"]["quantization_ratio_with_scales"]
    frontier = facts["predicted_frontier"]
    order = sorted(frontier, key=lambda point: point["cost"])
    assert len(frontier) > 3
    assert [p["predicted"] for p in order] == sorted((p["predicted"] for p in order), reverse=True)


def test_candidates_are_records_and_are_not_built_again(planned, wish, monkeypatch):
    store = Store.open(planned.path.parent / "work" / "records.sqlite")
    records = store.find(study="plan", metric="kl_nats")
    built = [c for c in planned.outcome.candidates if set(c.schemes.values()) != {"W16A16"}]
    assert len(records) == len(built) and all(r.plan and r.lower < r.upper for r in records)
    monkeypatch.setattr("pennyweight.study.planning.build.quantize", None)  # calling it would fail
    again = plan(
        known(wish, planned), planned.path.with_name("again.toml"),
        work=planned.path.parent / "work", threads=2,
    )  # fmt: skip
    assert again.chosen == planned.chosen
    assert again.path.read_text() == planned.path.read_text()


def test_a_pinned_unit_has_its_scheme(planned, wish, tmp_path):
    pins = (parse_pin("*.0.*.o_proj.weight=W16A16"),)
    asked = known(wish, planned, pins=pins, budget=parse_budget("bits<=10"))
    found = plan(asked, tmp_path / "plan.toml", threads=1)
    assert found.chosen.schemes["model.layers.0.self_attn.o_proj"] == "W16A16"
    assert found.chosen.figures.bits_per_weight <= 10


def test_the_least_loss_at_so_many_bits(planned, wish, tmp_path):
    budget = parse_budget("bits<=6.5")
    found = plan(known(wish, planned, budget=budget), tmp_path / "plan.toml", threads=1)
    assert found.chosen.figures.bits_per_weight <= 6.5 and len(found.outcome.candidates) == 1
    assert len(set(found.chosen.schemes.values())) > 1


@pytest.mark.slow
def test_the_highest_ratio(planned, wish, tmp_path):
    found = plan(known(wish, planned, minimise="ratio"), tmp_path / "a.toml", threads=1)
    assert found.chosen.inside
    high = 1 - found.chosen.figures.quantization_ratio
    assert found.chosen.cost == pytest.approx(high * found.table.parameters)


def test_the_ratio_as_a_budget(planned, wish, tmp_path):
    budget = parse_budget("ratio>=0.5")
    found = plan(known(wish, planned, budget=budget), tmp_path / "b.toml", threads=1)
    assert 0.5 <= found.chosen.figures.quantization_ratio < 1


def test_measured_costs_can_be_the_objective(planned, wish, tmp_path):
    """Where 8 bits run faster than 4, the fastest plan has none in 4 bits."""
    shapes = {(64, 64), (32, 64), (96, 64), (64, 96)}
    times = {"W4A16_g32": 3.0, "W8A16_g32": 1.0, "W16A16": 2.0}
    costs = [
        {"shape": shape, "scheme": scheme, "value": value}
        for shape in shapes
        for scheme, value in times.items()
    ]
    (tmp_path / "costs.json").write_text(json.dumps({"unit": "us", "cost": costs}))
    asked = known(wish, planned, costs=tmp_path / "costs.json", minimise="latency")
    found = plan(asked, tmp_path / "plan.toml", threads=1)
    assert set(found.chosen.schemes.values()) == {"W8A16_g32"} and found.chosen.cost == 14.0
    assert found.facts["cost_unit"] == "us"
    with pytest.raises(RecipeError, match=r"holds latency in us; say --minimize latency$"):
        plan(replace(asked, minimise="cost"), tmp_path / "plan.toml", threads=1)


def test_the_cost_of_bits_is_bytes_whatever_is_named_beside_it(planned, wish, tmp_path):
    """It was once counted in the parameters of the ratio, and the limit in bytes."""
    asked = known(wish, planned, minimise="ratio", budget=parse_budget("bits<=6.5"))
    found = plan(asked, tmp_path / "plan.toml", threads=1)
    assert found.chosen.figures.bits_per_weight <= 6.5


def refused(wish, tmp_path, error, message):
    with pytest.raises(error, match=message):
        plan(wish, tmp_path / "plan.toml", threads=1)
    assert not (tmp_path / "plan.toml").exists()


def test_a_budget_inside_the_noise_of_16_bits(wish, tmp_path):
    tight = replace(wish, budget=parse_budget("kl<=1e-9"))
    refused(tight, tmp_path, BudgetError, "untouched model in 16 bits already loses .* Allow more")


def test_a_budget_out_of_reach_names_the_best_and_the_units(planned, wish, tmp_path):
    coarse = known(wish, planned, schemes=("W4A16_g32",), budget=parse_budget("kl<=0.001"))
    message = r"out of reach .* measured at [\d.]+ .* In the way: model.layers.\d+.* in W4A16_g32"
    refused(coarse, tmp_path, BudgetError, message)


def test_a_table_of_another_model(planned, wish, tiny_llama, tmp_path):
    other = replace(wish.ingredients, model=str(tiny_llama))
    asked = known(wish, planned, ingredients=other)
    refused(asked, tmp_path, CheckpointError, "measured on other weights")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"schemes": ("W3A16_g32",)}, RecipeError, "4- and 8-bit .* --any-engine"),
        ({"schemes": ("W4A16_g16",)}, RecipeError, "W4A16_g16: not among the schemes"),
        ({"pins": (parse_pin("*.v_proj.weight=W4A16_g32"), parse_pin("*.k_*=W16A16"))},
         RecipeError, "its tensors get one scheme"),
        ({"pins": (parse_pin("*.x_proj=W4A16_g32"),)}, RecipeError, "matches no tensor"),
        ({"allocator": "exat"}, UnknownNameError, "did you mean 'exact'"),
        ({"minimise": "latency"}, RecipeError, "make it with pennyweight costs"),
        ({"minimise": "speed"}, RecipeError, "expected one of size, ratio, latency, cost"),
        ({"minimise": "latency", "budget": parse_budget("bits<=5")}, RecipeError, "bounds what"),
        ({"price_per_hour": 2.0}, RecipeError, "expected --minimize cost"),
        ({"asking": TaskSettings(tasks=(), limit=3)}, RecipeError, "are of a budget on tasks"),
    ],
)  # fmt: skip
def test_what_cannot_be_planned(planned, wish, tmp_path, changes, error, message):
    refused(known(wish, planned, **changes), tmp_path, error, message)


def test_the_text_of_the_table_proves_nothing(planned, wish, token_file, tmp_path):
    same = known(wish, planned, data=(str(token_file),))
    refused(same, tmp_path, DataError, "give other text with --data")


def test_another_quantizer_than_the_table_has(planned, wish, tmp_path):
    other = replace(wish.ingredients, quantizer="hqq")
    refused(known(wish, planned, ingredients=other), tmp_path, RecipeError, "--quantizer rtn")


def test_a_plan_edited_into_what_vllm_cannot_serve(planned, tmp_path):
    text = planned.path.read_text()
    scheme = planned.chosen.schemes["model.layers.0.mlp.gate_proj+up_proj"]
    other = next(name for name in SCHEMES if name != scheme)
    head, _, tail = text.partition('match = "model.layers.0.mlp.up_proj.weight"\n')
    edited = tmp_path / "edited.toml"
    middle = 'match = "model.layers.0.mlp.up_proj.weight"\n'
    edited.write_text(head + middle + tail.replace(f'"{scheme}"', f'"{other}"', 1))
    with pytest.raises(RecipeError, match=r"one matrix product and wants one scheme .*up_proj"):
        quantize(load_recipe(edited), tmp_path / "out")
    edited.write_text(edited.read_text().replace('engine = "vllm"', 'engine = "any"'))
    quantize(load_recipe(edited), tmp_path / "out")


@pytest.mark.slow
def test_projections_by_themselves_make_no_plan_that_vllm_serves(wish, tmp_path):
    """Refused with the product that would be mixed; any engine takes it."""
    apart = replace(wish, granularity="matmul", budget=parse_budget("bits<=6.1"))
    with pytest.raises(RecipeError, match="one matrix product and wants one scheme for all"):
        plan(apart, tmp_path / "plan.toml", threads=1)
    found = plan(replace(apart, any_engine=True), tmp_path / "plan.toml", threads=1)
    assert found.recipe.engine == "any" and len(found.chosen.schemes) == 14


@pytest.mark.parametrize(
    "allocator", ["greedy", *(pytest.param(n, marks=pytest.mark.slow) for n in ("random", "tpe"))]
)
def test_other_allocators_plan_too(planned, wish, tmp_path, allocator):
    asked = known(wish, planned, allocator=allocator, rounds=2, budget=parse_budget("bits<=8"))
    found = plan(asked, tmp_path / "plan.toml", threads=1)
    assert found.chosen.figures.bits_per_weight <= 8
    assert found.facts["allocator"] == allocator


def test_from_the_command_line(planned, model, token_file, fresh, tmp_path):
    sense = planned.path.parent / "work" / "sense.json"
    arguments = [
        "plan", str(model), "--budget", "kl<=0.05", "--sense", str(sense), "--data", str(fresh),
        "--calibrate", str(token_file), "--quantizer", "rtn", "--threads", "1", "--json", "--quiet",
        "--schemes", ",".join(SCHEMES), "-o", str(tmp_path / "plan.toml"),
    ]  # fmt: skip
    found = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert found.exit_code == 0
    facts = json.loads(found.stdout)
    assert facts["candidates"][facts["chosen"]]["inside"]
    assert load_recipe(tmp_path / "plan.toml").engine == "vllm"


def test_options_of_the_estimator_from_the_command_line(model, token_file, fresh, tmp_path):
    arguments = [
        "plan", str(model), "--budget", "bits<=8", "--granularity", "layer", "--max-tokens", "100",
        "--sense-data", str(token_file), "--data", str(fresh), "--calibrate", str(token_file),
        "--quantizer", "rtn", "--schemes", "W4A16_g32,W8A16_g32", "--threads", "1", "--quiet",
        "-o", str(tmp_path / "plan.toml"), "--estimator", "in_context",
    ]  # fmt: skip
    run = lambda *more: CliRunner().invoke(app, [*arguments, *more], catch_exceptions=False)
    assert run("--set", "estimator.base=W8A16_g32").exit_code == 0
    table = json.loads((tmp_path / "plan.toml.work" / "sense.json").read_text())
    assert table["estimator"] == "in_context"
    assert table["settings"]["estimator_options"] == {"base": "W8A16_g32"}
    with pytest.raises(RecipeError, match="in_context: base: W3A16 is not among the schemes"):
        run("--set", "estimator.base=W3A16")


def test_a_table_of_other_options_of_the_quantizer(planned, wish, tmp_path):
    other = replace(wish.ingredients, quantizer="rtn", options={"range": "mse"})
    asked = known(wish, planned, ingredients=other)
    refused(asked, tmp_path, RecipeError, r"rtn \{\}, .* say the same with --set quantizer")


def test_units_are_measured_as_trainers_leave_them(model, token_file, fresh, tmp_path):
    """If asked for; trainers of more than linears count for candidates alone."""
    arguments = [
        "plan", str(model), "--budget", "bits<=8", "--granularity", "layer", "--max-tokens", "100",
        "--sense-data", str(token_file), "--data", str(fresh), "--calibrate", str(token_file),
        "--quantizer", "rtn", "--schemes", "W4A16_g32,W8A16_g32", "--threads", "1", "--quiet",
        "--train", "signround", "--set", "signround.steps=2", "--train", "norm_tweaking", "-o",
    ]  # fmt: skip
    for name, more in (("a", ["--sense-train"]), ("b", [])):
        out = tmp_path / f"{name}.toml"
        done = CliRunner().invoke(app, [*arguments, str(out), *more], catch_exceptions=False)
        assert done.exit_code == 0
        assert [each.name for each in load_recipe(out).train] == ["signround", "norm_tweaking"]
    read = lambda name: json.loads((tmp_path / f"{name}.toml.work" / "sense.json").read_text())
    trained, untrained = read("a"), read("b")
    assert trained["settings"]["train"] == [
        {"name": "signround", "match": "*", "options": {"steps": 2}}
    ]
    assert untrained["settings"]["train"] == [] and trained["units"] != untrained["units"]


def test_a_table_of_a_trainer_that_the_plan_has_not(planned, wish, tmp_path):
    table = planned.path.parent / "work" / "sense.json"
    data = json.loads(table.read_text())
    data["settings"]["train"] = [{"name": "signround", "match": "*", "options": {}}]
    (tmp_path / "sense.json").write_text(json.dumps(data))
    asked = replace(wish, sense=tmp_path / "sense.json")
    refused(asked, tmp_path, RecipeError, "no such one; say --train signround")
    with_it = replace(asked, train=(Training(name="signround"),), budget=parse_budget("kl<=1e-9"))
    refused(with_it, tmp_path, BudgetError, "16 bits")  # the table itself is taken


def test_units_may_be_measured_elsewhere(planned, wish, tmp_path):
    """By an engine: the same plan, and the same table."""
    engine = Sent()
    found = plan(wish, tmp_path / "plan.toml", engine=engine, threads=1)
    there = tmp_path / "plan.toml.work" / "sense.json"
    assert engine.count > len(found.table.units)  # each in two schemes, and two banks
    assert there.read_bytes() == (planned.path.parent / "work" / "sense.json").read_bytes()
    assert found.path.read_bytes() == planned.path.read_bytes()
