"""Attention in other formats: rounded in every layer, for every family, and nothing else moved."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward  # noqa: F401

from pennyweight.core import FormatError, NumericalError, UnknownNameError, UnsupportedError
from pennyweight.formats.operands import parse_operand
from pennyweight.model import attention
from pennyweight.model.attention import AttentionFormats, round_attention, round_operand
from tests.end_to_end.models import VOCAB, build
from tests.reference.attention import attend, round_row

FAMILIES = ["llama", "qwen3", "mistral", "gemma2", "opt", "gpt2", "phi3", "mixtral", "deepseek_v3"]
IDS = torch.randint(3, VOCAB, (1, 20), generator=torch.Generator().manual_seed(1))


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def rounded(family: str, **formats) -> torch.Tensor:
    model = build(family)
    round_attention(model, AttentionFormats(**formats), IDS)
    return logits(model)


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).std() / expected.std())


@pytest.mark.parametrize("family", FAMILIES)
def test_fewer_bits_move_the_logits_further(family):
    """Half a step of n bits is 1 / 2^n of the largest: six bits less are 64 times the error, and
    here at least 16 times. The logits of a random model pass it on about one to one."""
    expected = logits(build(family))
    for unit in ({"kv_cache": "int8"}, {"qk": "int8"}, {"pv": "int8"}):
        little = distance(rounded(family, **unit), expected)
        assert 0 < little < 0.03, unit
        much = distance(rounded(family, **dict.fromkeys(unit, "int2")), expected)
        assert much > 16 * little, unit


@pytest.mark.parametrize("family", FAMILIES)
def test_without_rounding_the_logits_are_the_same_bits(family, monkeypatch):
    monkeypatch.setattr(attention, "round_operand", lambda x, operand, scale: x)
    expected = logits(build(family))
    assert torch.equal(rounded(family, kv_cache="int8", qk="int4"), expected)
    # Probabilities are of the eager function, which the model then has to compare with.
    model = build(family)
    model.set_attn_implementation("eager")
    assert torch.equal(rounded(family, kv_cache="int8", qk="int4", pv="int2"), logits(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_rounds_each_number_once(family, monkeypatch):
    shapes = []
    monkeypatch.setattr(
        attention, "round_operand", lambda x, *rest: shapes.append(tuple(x.shape)) or x
    )
    model = build(family)
    round_attention(model, AttentionFormats(kv_cache="int8", qk="int8", pv="int8"))
    shapes.clear()
    logits(model)
    heads, shared = model.config.num_attention_heads, model.config.num_attention_heads
    if family not in ("opt", "gpt2"):
        shared = model.config.num_key_value_heads
    assert len(shapes) == 2 * 6  # layers; cached keys, cached values, q, k, p, v
    assert [shape[:3] for shape in shapes[:6]] == [
        (1, shared, 20), (1, shared, 20), (1, heads, 20), (1, shared, 20), (1, heads, 20),
        (1, shared, 20),
    ]  # fmt: skip
    assert shapes[4][3] == 20


class Layer(nn.Module):
    """Stands for a layer of some file of transformers, whose names are those of this module."""

    num_key_value_groups, is_causal, training = 2, True, False

    def forward(self):
        raise AssertionError("only its globals are read")


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_shared_heads_in_groups_equal_slow_loops(bits, name):
    heads, shared, tokens, dim, group = 4, 2, 7, 8, 4
    generator = torch.Generator().manual_seed(bits)
    q = torch.randn(1, heads, tokens, dim, generator=generator)
    k, v = torch.randn(2, 1, shared, tokens, dim, generator=generator)
    layer = Layer()
    cache = parse_operand(f"int{bits}_g{group}", torch.float32)
    operands = None if name == "sdpa" else parse_operand(f"int8_g{group}", torch.float32)
    change = attention._Rounder({layer: "layer"}, {})
    setattr(
        layer, attention.ATTRIBUTE,
        attention._Rounding(kv_cache=cache, qk=None, pv=operands, change=change),
    )  # fmt: skip
    mask = torch.full((tokens, tokens), -torch.inf).triu(1)[None, None]
    function = ALL_ATTENTION_FUNCTIONS[attention.PREFIX + name]
    found, _ = function(layer, q, k, v, mask, scaling=0.3)

    def slow(x, bits=bits):
        return [round_row(row, bits, group) for row in x.tolist()]

    for head in range(heads):
        keys, values = slow(k[0, head // 2]), slow(v[0, head // 2])
        weigh = None
        if operands:
            # Values pass twice: as cached, then as operands.
            values = [round_row(row, 8, group) for row in values]
            weigh = lambda row: round_row(row, 8, group)
        expected = attend(q[0, head].tolist(), keys, values, 0.3, weigh)
        # A float32 sum beside a float64 one: some 20 products of numbers below 4. A weight that
        # falls on the middle of two codes could take the other one; these seeds have none.
        assert torch.allclose(found[0, :, head], torch.tensor(expected), atol=20 * 4 * 2**-24)


def test_padding_a_last_group_of_probabilities_changes_no_number():
    weights = torch.rand(1, 2, 5, 11, generator=torch.Generator().manual_seed(0))
    layer = nn.Linear(1, 1)
    for name in ("int4_g4", "int4_g4_asym", "mxint4_g4"):
        format = parse_operand(name, torch.float32)
        change = attention._Rounder({layer: "layer"}, {})
        found = change(layer, attention.PROBABILITIES, format, weights)
        whole = round_operand(weights[..., :8], format, None)
        last = replace(format, format=replace(format.format, group_size=3))
        assert torch.equal(found[..., :8], whole)
        assert torch.equal(found[..., 8:], round_operand(weights[..., 8:], last, None))


def test_a_later_token_changes_no_earlier_logit():
    """Dynamic scales are of one token: else the model would see what it is to predict."""
    model = build("llama")
    round_attention(model, AttentionFormats(kv_cache="int4_g8_asym", qk="mxint4_g8", pv="int4_g16"))
    ids = IDS.clone()
    ids[0, -1] = (ids[0, -1] + 1) % VOCAB
    with torch.no_grad():
        other = model(input_ids=ids, use_cache=False).logits
    assert torch.equal(other[:, :-1], logits(model)[:, :-1])
    assert not torch.equal(other[:, -1], logits(model)[:, -1])


@pytest.mark.parametrize(("name", "choose"), [("int8_static", max), ("int8_staticmin", min)])
def test_static_scales_are_the_largest_of_calibration_or_the_least_of_the_largest(name, choose):
    model, largest = build("llama"), []
    rows = torch.cat([IDS, IDS.flip(1), IDS * 0 + 5])
    layer = model.model.layers[0].self_attn
    round_attention(model, AttentionFormats(kv_cache=name), rows)
    layer.v_proj.register_forward_hook(lambda m, args, out: largest.append(float(out.abs().max())))
    with torch.no_grad():
        for row in rows:
            model(input_ids=row[None], use_cache=False)
    scale = getattr(layer, attention.ATTRIBUTE).change.scales[layer, "cached values"]
    assert float(scale) == pytest.approx(choose(largest) / 127, rel=2**-11)  # float16: 11 bits


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("int8", 8 + 16 / 16), ("int4_g8", 4 + 16 / 8), ("int4_g8_asym", 4 + 20 / 8),
        ("fp8", 8 + 32 / 16), ("int8_static", 8), ("mxint4_g8", 4 + 8 / 8), ("nvfp4", 4 + 8 / 16),
        ("int3", 3 + 16 / 16),
    ],
)  # fmt: skip
def test_bits_are_counted_with_scales(name, bits):
    assert round_attention(build("llama"), AttentionFormats(kv_cache=name), IDS) == bits


def test_nothing_asked_for_is_nothing_done():
    model = build("llama")
    assert round_attention(model, AttentionFormats()) is None
    assert model.config._attn_implementation == "sdpa"


def test_groups_must_divide_the_width_of_a_head():
    expected = (
        r"model\.layers\.0\.self_attn: the cached keys have head_dim 16, which is not a multiple "
        r"of group_size 32; use groups of 16, 8, 4, 2"
    )
    with pytest.raises(FormatError, match=expected):
        round_attention(build("llama"), AttentionFormats(kv_cache="int4_g32"))
    with pytest.raises(FormatError, match="the queries have head_dim 16"):
        round_attention(build("llama"), AttentionFormats(qk="mxfp4"))


@pytest.mark.parametrize("unit", ["kv_cache", "qk", "pv"])
def test_attention_out_of_reach_is_an_error(unit):
    with pytest.raises(
        UnsupportedError, match=r"GPTJForCausalLM: .* does not look its attention up"
    ):
        round_attention(build("gptj"), AttentionFormats(**{unit: "int8"}))


def test_one_layer_out_of_reach_is_an_error():
    model = build("llama")
    layer = model.model.layers[1]

    class Own(nn.Module):
        def forward(self, hidden_states, **rest):
            return hidden_states, None

    layer.self_attn = Own()
    with pytest.raises(UnsupportedError, match="1 of its 2 layers"):
        round_attention(model, AttentionFormats(kv_cache="int8"))


def test_a_model_that_heeds_the_name_is_an_error():
    model = build("llama")
    model.model.layers[0].register_forward_hook(
        lambda module, args, out: out * (1 + (model.config._attn_implementation != "sdpa"))
    )
    with pytest.raises(UnsupportedError, match="its logits change"):
        round_attention(model, AttentionFormats(kv_cache="int8"))


def test_infinite_keys_are_an_error():
    model = build("llama")
    round_attention(model, AttentionFormats(kv_cache="int8"))
    with torch.no_grad():
        model.model.layers[1].self_attn.k_proj.weight[0, 0] = math.inf
    with pytest.raises(NumericalError, match=r"layers\.1\.self_attn: the cached keys hold NaN"):
        logits(model)


def test_unknown_names_are_errors():
    with pytest.raises(UnknownNameError, match="did you mean 'int8'"):
        AttentionFormats(kv_cache="int9").parsed()
