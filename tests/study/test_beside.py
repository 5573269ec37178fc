"""Units that are no linear of a block: measured as what they stand for, refused where there is no
place for them."""

import json
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from pennyweight.cli.main import app
from pennyweight.core import FormatError, RecipeError, UnknownNameError, UnsupportedError
from pennyweight.evaluate import Settings, evaluate_tokens
from pennyweight.formats.rounding import round_to_nearest
from pennyweight.formats.schemes import parse_scheme
from pennyweight.model.attention import AttentionFormats, round_attention
from pennyweight.model.checkpoint import Checkpoint
from pennyweight.model.load import load_model
from pennyweight.model.skeleton import Skeleton
from pennyweight.pipeline.survey import survey
from pennyweight.records import Store
from pennyweight.study.bank import Bank
from pennyweight.study.beside import ALSO, OPERANDS, beside_of, operand_format
from pennyweight.study.planning.budget import parse_budget
from pennyweight.study.planning.planner import plan
from pennyweight.study.planning.wish import Wish
from pennyweight.study.scaling.design import draw, parse_study
from pennyweight.study.scaling.run import run_scaling
from pennyweight.study.sensitivity.table import Sensitivity
from pennyweight.study.texts import read_texts
from pennyweight.study.trial import Swaps, Trials
from pennyweight.study.units import units
from tests.end_to_end.models import FAMILIES, VOCAB, build, save
from tests.study.benches import ingredients, sensing

SETTINGS = Settings(context=32, resamples=100, document_tokens=33)
EMBEDDING, SCHEME = "model.embed_tokens.weight", "W4A16_g32"
KINDS = ("qk", "pv", "kv_cache", "embeddings")


def opened(folder):
    return survey(Skeleton.build(Checkpoint.open(folder)))


@pytest.fixture(scope="module")
def bank(tiny_llama, token_file, tmp_path_factory, workers):
    given = ingredients(tiny_llama, token_file, also=KINDS)
    return Bank.make(given, (SCHEME, "MXINT4"), tmp_path_factory.mktemp("bank"), workers)


@pytest.fixture(scope="module")
def trials(bank, token_file, workers, tmp_path_factory):
    swaps = Swaps.load(bank)
    texts = read_texts(bank.path, swaps.model, [str(token_file)], settings=SETTINGS)
    return Trials(swaps, texts, workers, tmp_path_factory.mktemp("scratch"))


def test_units_of_a_llama(tiny_llama):
    found = units(opened(tiny_llama), "layer", ("lm_head", "pv", "qk", "embeddings"))
    assert [(unit.name, unit.kind, unit.tensors) for unit in found[2:]] == [
        ("model.layers.0.qk", "qk", ("model.layers.0.qk",)),
        ("model.layers.1.qk", "qk", ("model.layers.1.qk",)),
        ("model.layers.0.pv", "pv", ("model.layers.0.pv",)),
        ("model.layers.1.pv", "pv", ("model.layers.1.pv",)),
        ("model.embed_tokens", "embeddings", (EMBEDDING,)),
        ("lm_head", "lm_head", ("lm_head.weight",)),
    ]
    assert units(opened(tiny_llama), "layer") == found[:2]


def test_a_tied_head_is_the_embedding_and_a_dense_model_has_no_router(save_tiny):
    seen = opened(save_tiny(tie_word_embeddings=True))
    (embedding,) = beside_of(seen, ["embeddings"])
    assert embedding.modules == ("model.embed_tokens", "lm_head")
    with pytest.raises(UnsupportedError, match=r"lm_head: .* \(a tied one is the embedding"):
        beside_of(seen, ["lm_head"])
    with pytest.raises(UnsupportedError, match="router: LlamaForCausalLM has none"):
        beside_of(seen, ["router"])
    with pytest.raises(UnknownNameError, match=r"unknown units 'head'; known: qk, pv, kv_cache"):
        beside_of(seen, ["head"])


def formats(kind: str) -> AttentionFormats:
    return {
        "qk": AttentionFormats(qk="int4_g8"), "pv": AttentionFormats(pv="int4_g8"),
        "kv_cache": AttentionFormats(kv_cache="int4_g8"),
    }[kind]  # fmt: skip


@torch.no_grad()
def logits(model) -> torch.Tensor:
    ids = torch.randint(3, VOCAB, (1, 20), generator=torch.Generator().manual_seed(1))
    return model(input_ids=ids, use_cache=False).logits


def reference(trials, tiny_llama, change):
    """What `evaluate` says of the untouched model after `change`."""
    model = load_model(tiny_llama)
    change(model)
    found = evaluate_tokens(
        model, trials.texts.tokens, reference=load_model(tiny_llama), settings=SETTINGS
    )
    return found.comparison


@pytest.mark.parametrize("kind", ["qk", "pv", "kv_cache"])
def test_attention_of_every_block_is_the_evaluation_with_these_formats(trials, tiny_llama, kind):
    change = lambda model: round_attention(model, formats(kind))
    mix = {f"model.layers.{block}.{kind}": "int4_g8" for block in range(2)}
    found = trials.measure(mix)
    assert found.evaluation.comparison == reference(trials, tiny_llama, change)
    one = trials.measure(dict(list(mix.items())[1:]))
    assert 0 < one.kl.value < found.kl.value
    assert trials.measure({}).kl.value == 0.0


def test_a_scheme_rounds_operands_as_it_rounds_the_input_of_a_linear(trials):
    names = [f"model.layers.{block}.qk" for block in range(2)]
    as_scheme = trials.measure(dict.fromkeys(names, "MXINT4_g16")).kl
    assert as_scheme == trials.measure(dict.fromkeys(names, "mxint4_g16")).kl
    assert operand_format("MXINT4_g16", "qk") == operand_format("mxint4_g16", "qk")


def test_a_mix_of_everything_and_back(trials):
    weight = "model.layers.0.mlp.up_proj.weight"
    mix = {weight: SCHEME, "model.layers.1.qk": "int4", EMBEDDING: SCHEME}
    together = trials.measure(mix).kl
    for left_out in mix:
        fewer = {name: scheme for name, scheme in mix.items() if name != left_out}
        assert trials.measure(fewer).kl.value not in (0.0, together.value), left_out
    assert trials.measure(mix).kl == together
    assert trials.measure(dict.fromkeys(mix, "W16A16")).kl.value == 0.0


def rounded(weight):
    return round_to_nearest(weight, parse_scheme(SCHEME, torch.float32).weight).dequantize()


def test_an_embedding_is_rounded_to_nearest(trials, tiny_llama, bank):
    def change(model):
        model.model.embed_tokens.weight.copy_(rounded(model.model.embed_tokens.weight))

    with torch.no_grad():
        expected = reference(trials, tiny_llama, change)
    assert trials.measure({EMBEDDING: SCHEME}).evaluation.comparison == expected
    # 128 rows of 64 codes of 4 bits, and two float32 scales each
    assert bank.stored_bits(EMBEDDING, SCHEME) == 128 * (64 * 4 + 2 * 32)
    assert bank.parameters(EMBEDDING) == 128 * 64


def test_a_tied_embedding_is_rounded_at_both_ends(save_tiny, token_file, workers, tmp_path):
    model = save_tiny(tie_word_embeddings=True, num_hidden_layers=1)
    tied = Bank.make(
        ingredients(model, token_file, also=("embeddings",)), (SCHEME,), tmp_path, workers
    )
    swaps = Swaps.load(tied)
    swaps.put({EMBEDDING: SCHEME})
    expected = rounded(swaps.reference.lm_head.weight)
    assert torch.equal(swaps.model.lm_head.weight, expected)
    assert torch.equal(swaps.model.model.embed_tokens.weight, expected)
    swaps.put({})
    assert swaps.model.lm_head.weight is swaps.reference.lm_head.weight


def test_routers_are_units(save_tiny, token_file, workers, tmp_path):
    model = save_tiny("mixtral", num_local_experts=4, num_hidden_layers=1)
    mixture = Bank.make(
        ingredients(model, token_file, also=("router",)), ("W4A16_g32",), tmp_path, workers
    )
    (name,) = mixture.beside
    assert "gate" in name and mixture.parameters(name) == 4 * 64
    swaps = Swaps.load(mixture)
    place = mixture.beside[name].modules[0]
    swaps.put({name: SCHEME})
    changed, original = (
        each.get_parameter(f"{place}.weight") for each in (swaps.model, swaps.reference)
    )
    assert torch.equal(changed, rounded(original)) and not torch.equal(changed, original)


@pytest.mark.slow
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "gptj"])
def test_every_family(family, token_file, workers, tmp_path):
    """gptj does not look its attention up by name; that is an error, tested with it."""
    source = save(build(family), tmp_path / "model")
    for kind in OPERANDS:
        bank = Bank.make(
            ingredients(source, token_file, also=(kind,)), (SCHEME,), tmp_path / "bank", workers
        )
        swaps = Swaps.load(bank)
        before = logits(swaps.model)
        swaps.put(dict.fromkeys(bank.beside, "int4_g8"))
        expected = load_model(source)
        round_attention(expected, formats(kind))
        assert len(bank.beside) == 2
        assert torch.equal(logits(swaps.model), logits(expected))
        swaps.put({})
        assert torch.equal(logits(swaps.model), before)


@pytest.mark.parametrize(
    ("mix", "error", "message"),
    [
        ({"model.layers.0.qk": "int4_g32"}, FormatError, "int4_g32: the queries have head_dim 16"),
        ({"model.layers.0.qk": "int9"}, UnknownNameError, "did you mean 'int8'"),
        ({"model.layers.0.pv": "int8_static"}, UnsupportedError, "fixed on calibration text"),
        ({"model.layers.0.qk": SCHEME}, UnsupportedError, "leaves inputs at 16 bits, and qk has"),
        ({"model.layers.0.qk": "W8A8_static"}, UnsupportedError, "fixed on calibration text"),
        ({EMBEDDING: "int8"}, FormatError, "int8 is a format of operands, and embeddings has w"),
        ({EMBEDDING: "W8A8"}, FormatError, "can only be in a weight-only scheme"),
        ({EMBEDDING: "W4A16_g24"}, FormatError, "W4A16_g24: in_features 64"),
        ({"model.layers.7.qk": "int8"}, RecipeError, "is not a linear"),
        ({"lm_head.weight": SCHEME}, RecipeError, "is not a linear"),
    ],
)
def test_mixes_that_cannot_be(trials, mix, error, message):
    with pytest.raises(error, match=message):
        trials.swaps.put(mix)


@pytest.fixture(scope="module")
def table(tiny_llama, token_file, tmp_path_factory):
    """Made by the command, of a model without a tokenizer."""
    output = tmp_path_factory.mktemp("sense") / "sense.json"
    found = CliRunner().invoke(app, [
        "sense", str(tiny_llama), "--data", str(token_file), "--quantizer", "rtn", "--schemes",
        f"{SCHEME},W8A16_g32", "--granularity", "layer", "--also", ",".join((*KINDS, "lm_head")),
        "--operands", "int4,int8", "--context", "32", "--max-tokens", "60", "--threads", "1",
        "--document-tokens", "31", "-o", str(output), "-q",
    ], catch_exceptions=False, env={"COLUMNS": "150"})  # fmt: skip
    assert found.exit_code == 0, found.output
    return output, found.stdout


def test_sense_measures_them_and_shows_them(table):
    found, shown = Sensitivity.load(table[0]), table[1]
    assert len(found.units) == 2 + 3 * 2 + 2
    for unit in found.units[2:8]:
        assert (unit.parameters, set(unit.options)) == (0, {"int4", "int8", "W16A16"})
        assert unit.options["int4"].value > unit.options["int8"].value > 0
        assert unit.options["int4"].stored_bits == 0
        assert unit.name in shown
    for unit in found.units[8:]:
        assert unit.options[SCHEME].value > unit.options["W8A16_g32"].value > 0
        assert unit.options[SCHEME].stored_bits == unit.parameters * (4 + 32 / 32)
    assert found.settings["schemes"] == [SCHEME, "W8A16_g32", "int4", "int8"]


def test_a_format_of_operands_is_known_before_anything_is_quantized(
    tiny_llama, token_file, tmp_path
):
    for name, message in (("int9", "did you mean 'int8'"), (SCHEME, "inputs at 16 bits")):
        asked = sensing(tiny_llama, token_file, tmp_path, also=("qk",), operands=(name,))
        with pytest.raises((UnknownNameError, UnsupportedError), match=message), asked:
            pass
    assert not (tmp_path / "bank").exists()


def test_estimators_that_look_at_weights_refuse(tiny_llama, token_file, tmp_path):
    with (
        sensing(tiny_llama, token_file, tmp_path, also=("qk",), schemes=(SCHEME,)) as opened,
        pytest.raises(UnsupportedError, match=r"fisher looks at .* model\.layers\.0\.qk is none"),
    ):
        opened.estimate("fisher", {})


def test_a_plan_refuses_what_a_recipe_has_no_place_for(table, tiny_llama, token_file, tmp_path):
    wish = Wish(
        ingredients=ingredients(tiny_llama, token_file), budget=parse_budget("kl<=0.1"),
        sense=table[0], schemes=(SCHEME,), settings=SETTINGS, data=(str(token_file),),
    )  # fmt: skip
    message = r"sense.json: qk can be measured .* but not planned: .* for lm_head"
    with pytest.raises(RecipeError, match=message):
        plan(wish, tmp_path / "plan.toml", threads=1)
    with pytest.raises(RecipeError, match="--also: qk can be measured"):
        plan(replace(wish, sense=None, also=("qk",)), tmp_path / "plan.toml", threads=1)


def test_the_same_share_of_units_without_parameters_is_drawn():
    sizes = {"a": 10, "b": 10, "c": 20, "qk": 0, "pv": 0, "more": 0, "most": 0}
    for ratio, weightless in ((0.1, 0), (0.5, 2), (0.9, 4), (1.0, 4)):
        for trial in range(5):
            low = draw(sizes, ratio, (trial,))
            assert sum(not sizes[name] for name in low) == weightless
    assert len({draw(sizes, 0.5, (trial,)) for trial in range(20)}) > 6  # of 2 * 6 and 2 * 6


def test_a_scaling_study_with_the_products(save_tiny, token_file, tmp_path):
    text = {"data": [str(token_file)], "max_tokens": 32, "context": 32}
    model = save_tiny(num_hidden_layers=1)
    study = parse_study({
        "models": [str(model)], "trials": 2, "evaluate": text, "sense": text,
        "grid": [{"formats": ["MXINT4_g16"], "also": ["qk", "pv"], "ratios": [0.5]}],
    })  # fmt: skip
    store = Store.open(tmp_path / "records.sqlite")
    assert run_scaling(study, store, tmp_path / "work", threads=1) == 3  # two drawn, one exact
    found = [r for r in store.find(study="scaling", metric="kl_nats") if "ratio" in r.subject]
    losses = {
        r.detail["low"][0]: r.value
        for r in store.find(study="scaling", metric="kl_nats")
        if r.subject["search"] == "single"
    }
    products = {name for name in losses if name.endswith((".qk", ".pv"))}
    assert len(losses) == 7 + 2 and len(products) == 2
    for record in found:
        low = set(record.detail["low"]) & products
        assert record.subject["granularity"] == "matmul+qk+pv"
        assert record.detail["operand_ratio"] == 0.5 == len(low) / 2
        # q and o, k and v, gate, up and down
        assert record.detail["parameters_considered"] == 2 * 64**2 + 2 * 32 * 64 + 3 * 64 * 96
    (exact,) = [r for r in found if r.subject["search"] == "exact"]
    least = sorted(products, key=lambda name: losses[name])[:1]
    assert set(exact.detail["low"]) & products == set(least)


@pytest.mark.parametrize(
    ("also", "formats", "message"),
    [
        (["qv"], ["MXINT4"], "unknown units 'qv'"),
        (["qk"], ["W4A16"], "W4A16: leaves inputs at 16 bits"),
        (["qk", "qk"], ["MXINT4"], "also: each value counts once"),
    ],
)
def test_studies_that_say_nothing_of_products(tiny_llama, also, formats, message):
    grid = {"formats": formats, "also": also, "ratios": [0.5]}
    with pytest.raises((UnknownNameError, UnsupportedError, RecipeError), match=message):
        parse_study({"models": [str(tiny_llama)], "grid": [grid]})


def test_every_kind_is_in_the_help():
    shown = CliRunner().invoke(app, ["sense", "--help"], env={"COLUMNS": "200"}).stdout
    kinds = "qk,pv,kv_cache,embeddings,lm_head,router"
    assert set(kinds.split(",")) == set(ALSO) and kinds in shown


def test_json_of_a_table_is_the_file(table):
    assert json.loads(table[0].read_text())["units"][2]["kind"] == "qk"
