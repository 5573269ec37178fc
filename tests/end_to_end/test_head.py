"""A head that a rule names is quantized as a linear behind the last norm; a tied one is not."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from pennyweight.core import Format, FormatError, RecipeError
from pennyweight.export import TARGETS
from pennyweight.formats.rounding import round_to_nearest
from pennyweight.formats.schemes import parse_scheme
from pennyweight.model.load import load_model
from pennyweight.model.workers import start_workers
from pennyweight.observe.collect import Collector
from pennyweight.pipeline import head as module
from pennyweight.pipeline.check import check
from pennyweight.pipeline.finish import export
from pennyweight.pipeline.job import prepare
from pennyweight.pipeline.quantize import quantize
from pennyweight.pipeline.recipe import make_quantizer
from pennyweight.pipeline.solve import solve
from pennyweight.study.planning.budget import parse_budget
from pennyweight.study.planning.planner import plan
from pennyweight.study.planning.wish import Wish
from tests.conftest import save_tiny_model
from tests.end_to_end.models import build, contents, make_recipe, save, save_tokens
from tests.study.benches import ingredients

HEAD = {"match": "lm_head.weight", "scheme": "W8A16_g32", "quantizer": "rtn"}
BLOCKS = {"match": "*", "scheme": "W4A16_g32", "quantizer": "rtn"}


def dequantized(folder) -> torch.Tensor:
    return load_model(folder).lm_head.weight


@pytest.fixture(scope="module")
def original(tiny_llama):
    return load_model(tiny_llama)


def rounding(scheme: str) -> Format:
    return parse_scheme(scheme, torch.float32).weight


def rounded(weight, scheme: str) -> torch.Tensor:
    return round_to_nearest(weight, rounding(scheme)).dequantize()


@pytest.fixture(scope="module")
def result(tiny_llama, token_file, tmp_path_factory):
    recipe = make_recipe(tiny_llama, token_file, HEAD, BLOCKS)
    return quantize(recipe, tmp_path_factory.mktemp("head") / "out", threads=1, keep_work=True)


def test_it_is_stored_and_no_engine_is_told_to_ignore_it(result, original):
    config = json.loads((result.path / "config.json").read_text())["quantization_config"]
    groups = {tuple(g["targets"]): g["weights"] for g in config["config_groups"].values()}
    assert groups["lm_head",]["num_bits"] == 8 and "lm_head" not in config["ignore"]
    stored = load_file(result.path / "model.safetensors")
    assert "lm_head.weight" not in stored and "lm_head.weight_packed" in stored
    assert torch.equal(dequantized(result.path), rounded(original.lm_head.weight, "W8A16_g32"))
    # transformers has loaded the files and computed the same
    assert result.proof["logits"]["by"] == "transformers"
    assert result.proof["census"]["quantized"] == 15
    assert result.check.schemes == {"W4A16_g32": 14, "W8A16_g32": 1}
    assert not any("lm_head" in why for why in result.check.kept)


def test_the_check_says_what_will_be_on_disk(result):
    size = (result.path / "model.safetensors").stat().st_size
    assert result.check.bytes_after == pytest.approx(
        size, rel=0.15
    )  # a header beside small tensors


@pytest.mark.parametrize("target", ["dense", "packed"])
def test_other_layouts_hold_it(result, tmp_path, target):
    work = result.path.with_name("out.work")
    export(work, tmp_path / "out", target=target)
    assert TARGETS[target].config is not None
    assert torch.equal(dequantized(tmp_path / "out"), dequantized(result.path))


def test_one_scheme_for_all_linears_takes_the_head_in(tiny_llama, token_file, tmp_path, original):
    recipe = make_recipe(tiny_llama, token_file, HEAD | {"scheme": "W4A16_g32"}, BLOCKS)
    result = quantize(recipe, tmp_path / "out", threads=1)
    config = json.loads((result.path / "config.json").read_text())["quantization_config"]
    (group,) = config["config_groups"].values()
    assert group["targets"] == ["Linear", "lm_head"] and "lm_head" not in config["ignore"]
    assert torch.equal(dequantized(result.path), rounded(original.lm_head.weight, "W4A16_g32"))


def test_a_quantizer_with_data_sees_what_enters_the_head(
    tiny_llama, token_file, tmp_path, original
):
    """Behind untouched blocks its input is what transformers hands to the head."""
    gptq = HEAD | {"scheme": "W3A16_g32", "quantizer": "gptq"}
    recipe = make_recipe(tiny_llama, token_file, gptq)
    result = quantize(recipe, tmp_path / "out", threads=1)
    made, format = make_quantizer("gptq", {}, "test"), rounding("W3A16_g32")
    calibration, inputs = prepare(recipe).calibration, []
    assert calibration is not None
    record = lambda _, args: inputs.append(args[0].flatten(0, 1))
    handle = original.lm_head.register_forward_pre_hook(record)
    with start_workers(1) as workers, torch.no_grad():
        for row in calibration.ids:
            original(input_ids=row[None], use_cache=False)
        handle.remove()
        collector = Collector(made.needs, workers)
        collector.add(inputs[:4])
        collector.add(inputs[4:])
        expected = solve(made, original.lm_head.weight.detach(), format, collector.stats(), workers)
    found = dequantized(result.path)
    assert torch.equal(found, expected.dequantize())
    assert not torch.equal(found, rounded(original.lm_head.weight, "W3A16_g32"))
    fact = json.loads((result.path / "proof.json").read_text())["linears"]["lm_head.weight"]
    assert (fact["tokens"], fact["metric"]) == (8 * 24, "output")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["phi", "gptj", "mixtral", "deepseek_v3", "granitemoe"])
def test_every_family(family, tmp_path):
    """The head of phi has a bias, and that of granite divides its output; what transformers reloads
    computes the same, which the run proves."""
    source = save(build(family), tmp_path / "source")
    gptq = HEAD | {"scheme": "W4A16_g32", "quantizer": "gptq"}
    rules = [gptq, BLOCKS | {"scheme": "W4A16_g32"}]
    result = quantize(
        make_recipe(source, save_tokens(tmp_path), *rules), tmp_path / "out", threads=1
    )
    assert "lm_head.weight_packed" in load_file(result.path / "model.safetensors")
    model, original = load_model(result.path), load_model(source)
    with torch.no_grad():
        out = model(input_ids=torch.arange(3, 23)[None], output_hidden_states=True)
        found, expected = (each.lm_head(out.hidden_states[-1]) for each in (model, original))
    assert 0 < (found - expected).square().mean() < 0.05 * expected.square().mean()


@pytest.mark.slow
def test_behind_quantized_blocks_it_sees_their_errors(tiny_llama, token_file, tmp_path):
    gptq = HEAD | {"scheme": "W3A16_g32", "quantizer": "gptq"}
    heads = []
    for number, rules in enumerate([[gptq], [gptq, BLOCKS | {"scheme": "W2A16_g32"}]]):
        recipe = make_recipe(tiny_llama, token_file, *rules)
        heads.append(dequantized(quantize(recipe, tmp_path / f"{number}", threads=1).path))
    assert not torch.equal(*heads)


@pytest.mark.slow
def test_a_run_that_stops_before_the_head_goes_on_with_the_same_bytes(
    tiny_llama, token_file, tmp_path, monkeypatch
):
    recipe = make_recipe(
        tiny_llama, token_file, HEAD | {"quantizer": "gptq"}, BLOCKS | {"quantizer": "gptq"}
    )
    quantize(recipe, tmp_path / "whole", threads=1)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module.Head, "quantize", stop)
        with pytest.raises(KeyboardInterrupt):
            quantize(recipe, tmp_path / "broken", threads=1)
    assert len(list((tmp_path / "broken.work").glob("block_*"))) == 2
    quantize(recipe, tmp_path / "broken", threads=1)
    assert contents(tmp_path / "whole") == contents(tmp_path / "broken")


@pytest.mark.parametrize("pattern", ["*", "*.weight", "*[md]*.weight"])
def test_a_rule_for_the_blocks_does_not_mean_the_head(tiny_llama, token_file, pattern):
    report = check(make_recipe(tiny_llama, token_file, BLOCKS | {"match": pattern}))
    assert report.kept["lm_head"] == 1 and report.schemes == {"W4A16_g32": 14}


def test_it_can_be_left_as_it_is_by_name(tiny_llama, token_file):
    rules = [HEAD | {"scheme": "W16A16"}, HEAD | {"match": "lm_*"}, BLOCKS]
    with pytest.raises(RecipeError, match=r"rule\.1: match 'lm_\*': earlier rules"):
        check(make_recipe(tiny_llama, token_file, *rules))
    assert check(make_recipe(tiny_llama, token_file, rules[0], BLOCKS)).kept["lm_head"] == 1


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"scheme": "W8A8"}, FormatError, "lm_head.weight: W8A8: rounds inputs, and a head can"),
        ({"scheme": "W4A16_g48"}, FormatError, "lm_head.weight: W4A16_g48: in_features 64"),
        ({"quantizer": "squeezellm", "scheme": "W4A16_table"}, RecipeError, "needs gradients"),
        (
            {"quantizer": "gwq", "options": {"scope": "model"}}, RecipeError,
            "chooses weights over several linears",
        ),
    ],
)  # fmt: skip
def test_what_a_head_cannot_be(tiny_llama, token_file, change, error, message):
    with pytest.raises(error, match=message):
        check(make_recipe(tiny_llama, token_file, HEAD | change, BLOCKS))


def test_a_tied_head_is_refused_with_the_reason(save_tiny, token_file):
    model = save_tiny(tie_word_embeddings=True)
    message = r"rule.0: match 'lm_head.weight': lm_head.weight is the embedding, which is not"
    with pytest.raises(RecipeError, match=message):
        check(make_recipe(model, token_file, HEAD, BLOCKS))


@pytest.mark.slow
def test_a_plan_with_the_head_as_a_unit(token_file, tmp_path):
    model = save_tiny_model(tmp_path / "llama", initializer_range=0.2, num_hidden_layers=1)
    (fresh := tmp_path / "fresh.json").write_text(
        json.dumps(torch.randint(128, (6, 48), generator=torch.Generator().manual_seed(1)).tolist())
    )
    wish = Wish(
        ingredients=ingredients(model, token_file), budget=parse_budget("bits<=7"),
        schemes=("W4A16_g32", "W8A16_g32", "W16A16"), also=("lm_head",), granularity="layer",
        sense_data=(str(token_file),), data=(str(fresh),),
    )  # fmt: skip
    wish = replace(wish, settings=replace(wish.settings, context=32, resamples=50))
    planned = plan(wish, tmp_path / "plan.toml", threads=1)
    assert set(planned.chosen.schemes) == {"model.layers.0", "lm_head"}
    assert planned.table.by_name["lm_head"].parameters == 128 * 64
    scheme = planned.chosen.schemes["lm_head"]
    assert scheme != "W16A16"
    result = quantize(planned.recipe, tmp_path / "out", threads=1)
    assert result.check.schemes[scheme] >= 1 and "lm_head" not in result.check.kept
