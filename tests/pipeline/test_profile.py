"""The walk of `profile`, and what it says of models that are known to be easy or hard."""

import dataclasses
import json

import pytest
import torch
from typer.testing import CliRunner

from pennyweight.cli.main import app
from pennyweight.core import DataError, RecipeError
from pennyweight.model.load import load_model
from pennyweight.pipeline.advice import advise
from pennyweight.pipeline.inject import inject_outliers
from pennyweight.pipeline.profile import Sampling, outlier_features, profile
from tests.engines import Sent

SMALL = Sampling(samples=3, tokens=16)


@pytest.fixture(scope="module")
def loud_llama(tiny_llama, tmp_path_factory):
    out = tmp_path_factory.mktemp("loud") / "loud"
    return inject_outliers(tiny_llama, out, alpha=256.0, channels=2)


def plain(found):
    return json.dumps(found.to_dict() | {"model": ""}, sort_keys=True)


def test_inputs_and_residuals_are_those_of_the_whole_model(tiny_llama, token_file):
    """The oracle: hooks on the model in memory, all samples at once."""
    found = profile(str(tiny_llama), [str(token_file)], SMALL, threads=1)
    ids = torch.tensor(json.loads(token_file.read_text()))
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    rows = ids[order].flatten()[: 3 * 16].view(3, 16)
    model, seen = load_model(tiny_llama), {}
    for name, module in model.named_modules():
        if name.endswith(("q_proj", "o_proj", "up_proj", "down_proj", "layers.0", "layers.1")):
            module.register_forward_pre_hook(
                lambda m, args, name=name: seen.update({name: args[0][:, 1:]})
            )
    with torch.inference_mode():
        model(input_ids=rows)
    assert len(found.places) == 2 * 5 + 1 and len(found.inputs) == 8
    checked = 0
    for place in found.places:
        portrait = place.portraits[str(token_file)]
        name = place.name.partition(" (")[0]
        if "gate_proj" in name:
            name = name.partition(", ")[0].replace("gate_proj", "up_proj")  # they read the same
        name = name.partition(", ")[0]
        if name in seen:
            x = seen[name].double()
            assert portrait.absmax == pytest.approx(x.abs().max().item(), rel=1e-5)
            assert portrait.rms == pytest.approx(x.square().mean().sqrt().item(), rel=1e-5)
            assert portrait.tokens == 3 * 16
            checked += 1
    assert checked == 10


def test_threads_change_nothing_and_the_seed_does(tiny_llama, token_file):
    sets = [str(token_file), "random-tokens"]
    few = dataclasses.replace(SMALL, samples=2)
    first = profile(str(tiny_llama), sets, few, threads=1)
    assert plain(profile(str(tiny_llama), sets, few, threads=3)) == plain(first)
    other = dataclasses.replace(few, seed=1)
    assert plain(profile(str(tiny_llama), sets, other, threads=1)) != plain(first)


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_shards_that_others_walked_add_up_to_the_same(save_tiny, token_file, tmp_path, kind):
    """Six samples are two shards, of four and of two."""
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2} if kind == "mixtral" else {}
    model, engine = str(save_tiny(kind, **experts)), Sent()
    sets, sampling = ["random-tokens", str(token_file)], Sampling(samples=6, tokens=8)
    here = profile(model, sets, sampling, threads=1)
    assert plain(profile(model, sets, sampling, engine=engine, threads=1)) == plain(here)
    assert engine.count == 2
    places = [place.portraits["random-tokens"].tokens for place in here.places]
    assert kind == "mixtral" or set(places) == {6 * 8}


def test_sets_do_not_see_each_other(tiny_llama, token_file):
    alone = profile(str(tiny_llama), ["random-tokens"], SMALL, threads=1)
    both = profile(str(tiny_llama), [str(token_file), "random-tokens"], SMALL, threads=1)
    for a, b in zip(alone.places, both.places, strict=True):
        assert a.portraits["random-tokens"] == b.portraits["random-tokens"]
        assert not a.likeness and set(b.likeness) == {"random-tokens"}


def test_injected_outliers_are_found_where_they_were_put(tiny_llama, loud_llama, token_file):
    data = str(token_file)
    clean = profile(str(tiny_llama), [data], SMALL, threads=1)
    loud = profile(str(loud_llama.path), [data], SMALL, threads=1)
    assert clean.outlier_features[data] == () and loud.outlier_features[data] == loud_llama.channels
    assert advise(clean)[0].startswith("Outliers: no handling needed")
    said = " ".join(advise(loud))
    assert "W8A8_static as it is will lose" in said and "put smoothquant or clip_smooth" in said
    assert f"2 channels ({loud_llama.channels[0]}, {loud_llama.channels[1]})" in said
    for before, after in zip(clean.inputs, loud.inputs, strict=True):
        a, b = before.portraits[data], after.portraits[data]
        if "o_proj" in before.name or "down_proj" in before.name:  # no norm feeds these
            assert b.whole_tensor_sqnr_db == pytest.approx(a.whole_tensor_sqnr_db, abs=0.1)
        else:
            assert {c.channel for c in b.top[:2]} == set(loud_llama.channels)
            assert b.max_to_median > 50 > 10 > a.max_to_median
            assert b.whole_tensor_sqnr_db < a.whole_tensor_sqnr_db - 20


def test_the_advice_compares_sets(tiny_llama, token_file, tmp_path):
    data = str(token_file)
    (same := tmp_path / "same.json").write_text(token_file.read_text())
    (few := tmp_path / "few.json").write_text(json.dumps([[3] * 64, [4] * 64] * 2))
    lines = advise(profile(str(tiny_llama), [data, str(same), str(few)], SMALL, threads=1))
    assert "nothing here says that the choice matters" in lines[-2] and "1.00" in lines[-2]
    assert "may depend on the choice" in lines[-1] and str(few) in lines[-1]
    one = advise(profile(str(tiny_llama), [data], SMALL, threads=1))
    assert "give two or more" in one[-1]


def test_experts_are_profiled_on_what_was_sent_to_them(save_tiny, token_file):
    model = save_tiny("mixtral", num_local_experts=4, num_experts_per_tok=2)
    found = profile(str(model), [str(token_file)], SMALL, threads=1)
    experts = [p for p in found.inputs if "experts.0.w1" in p.name or "experts.0.gate" in p.name]
    assert experts and all(0 < p.portraits[str(token_file)].tokens < 48 for p in experts)


def test_llm_int8s_rule_wants_a_quarter_of_the_inputs(loud_llama, token_file):
    data = str(token_file)
    found = profile(str(loud_llama.path), [data], SMALL, threads=1)
    quiet = [
        dataclasses.replace(place, portraits={
            data: dataclasses.replace(place.portraits[data], loud_channels=())
        }) for place in found.places
    ]  # fmt: skip
    wide = [i for i, p in enumerate(found.places)
            if p.kind == "input" and p.portraits[data].channels == 64]  # fmt: skip
    # 6 such inputs (q,k,v | o | gate,up in 2 blocks), so 2 of them are a quarter or more, 1 is not.
    assert len(wide) == 6
    one, two = (quiet.copy() for _ in range(2))
    one[wide[0]] = two[wide[0]] = found.places[wide[0]]
    two[wide[2]] = found.places[wide[2]]
    assert outlier_features(one, data) == ()
    assert outlier_features(two, data) == loud_llama.channels


@pytest.mark.parametrize("sets", [[], ["random-tokens", "random-tokens"]])
def test_no_set_or_one_twice(tiny_llama, sets):
    with pytest.raises(DataError, match="expected one or more different ones"):
        profile(str(tiny_llama), sets, SMALL)


def test_numbers_that_mean_nothing(tiny_llama):
    with pytest.raises(RecipeError, match=r"calibrate.samples: expected 1"):
        profile(str(tiny_llama), ["random-tokens"], Sampling(samples=0))


def test_the_command_shows_a_page_and_json(tiny_llama, token_file):
    run = lambda model, *more: CliRunner().invoke(
        app, ["profile", model, "-q", "--samples", "1", "--tokens", "16", *more]
    )
    shown = run("pylm", "--calibrate", "stdlib", "--calibrate", "random-ascii")
    assert shown.exit_code == 0, shown.output
    for part in ("stdlib: 1 x 16 tokens", "4.mlp.down_proj", "Outliers: ", "Calibration, random-"):
        assert part in shown.stdout
    found = json.loads(run(str(tiny_llama), "--json", "--calibrate", str(token_file)).stdout)
    assert len(found["places"]) == 11 and found["advice"][0].startswith("Outliers")
    assert found["calibration"][str(token_file)]["digest"]
