"""Attention in formats that differ from block to block: the same numbers as when all have one."""

import pytest
import torch

from pennyweight.core import FormatError, UnsupportedError
from pennyweight.formats.operands import parse_operand
from pennyweight.model import attention
from pennyweight.model.attention import (
    AttentionFormats,
    BlockAttention,
    attending_blocks,
    attention_widths,
    round_attention,
)
from pennyweight.model.capture import capture_shapes
from pennyweight.model.checkpoint import Checkpoint
from pennyweight.model.skeleton import Skeleton
from tests.end_to_end.models import VOCAB, build, save

IDS = torch.randint(3, VOCAB, (1, 20), generator=torch.Generator().manual_seed(1))
INT4 = parse_operand("int4", torch.float32)


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def whole(**formats) -> torch.Tensor:
    """Logits with every block in these formats, by the function that rounds a whole model."""
    model = build("llama")
    round_attention(model, AttentionFormats(**formats))
    return logits(model)


@pytest.mark.parametrize("unit", attention.UNITS)
def test_all_blocks_in_one_format_are_the_model_in_it_and_none_is_the_model_as_it_was(unit):
    model = build("llama")
    before, blocks = logits(model), BlockAttention(model, model.model.layers)
    assert torch.equal(logits(model), before)
    format = parse_operand("int4", torch.float16 if unit == "kv_cache" else torch.float32)
    blocks.put({0: {unit: format}, 1: {unit: format}})
    assert torch.equal(logits(model), whole(**{unit: "int4"}))
    blocks.put({})
    assert torch.equal(logits(model), before)


def test_one_block_is_rounded_and_the_other_is_not(monkeypatch):
    model, seen = build("llama"), []
    blocks = BlockAttention(model, model.model.layers)
    blocks.put({1: {"qk": INT4}})
    original = attention._Rounder.__call__
    monkeypatch.setattr(
        attention._Rounder, "__call__",
        lambda self, module, role, *rest: seen.append((module, role))
        or original(self, module, role, *rest),
    )  # fmt: skip
    found = logits(model)
    layer = model.model.layers[1].self_attn
    assert seen == [(layer, "queries"), (layer, "keys")]
    assert not torch.equal(found, whole()) and not torch.equal(found, whole(qk="int4"))


def test_blocks_and_units_are_in_formats_of_their_own():
    """Block 0 in one format and block 1 in another is what rounding them apart gives: the state
    after block 0 is that of the model whose blocks are all in its format."""
    states = {}
    for name, formats in {
        "mixed": {0: {"pv": INT4}, 1: {"kv_cache": INT4, "qk": INT4}},
        "first": {0: {"pv": INT4}, 1: {"pv": INT4}},
    }.items():
        model = build("llama")
        BlockAttention(model, model.model.layers).put(formats)
        with torch.no_grad():
            out = model(input_ids=IDS, use_cache=False, output_hidden_states=True)
        states[name] = out.hidden_states
    assert torch.equal(states["mixed"][1], states["first"][1])
    assert not torch.equal(states["mixed"][2], states["first"][2])


@pytest.fixture
def skeleton(tmp_path):
    def make(family: str, **changes) -> Skeleton:
        source = save(build(family, **changes), tmp_path / family)
        return Skeleton.build(Checkpoint.open(source))

    return make


def test_widths_are_found_on_shapes_alone(skeleton):
    found = skeleton("deepseek_v3", v_head_dim=24)
    widths = attention_widths(found.blocks[0], capture_shapes(found), 0)
    assert widths["qk"] == {"queries": 16, "keys": 16}  # 8 with positions and 8 without
    assert widths["pv"] == {"values": 24}
    assert widths["kv_cache"] == {"cached keys": 16, "cached values": 24}
    assert attending_blocks(found.model.config) == [0, 1]


def test_attention_out_of_reach_has_no_widths_and_is_an_error(skeleton):
    found = skeleton("gptj")
    assert attention_widths(found.blocks[0], capture_shapes(found), 0) == {}
    model = build("gptj")
    with pytest.raises(UnsupportedError, match="does not look its attention up"):
        BlockAttention(model, model.transformer.h)


def test_probabilities_out_of_reach_leave_nothing_rounded(monkeypatch):
    model = build("llama")
    before, blocks = logits(model), BlockAttention(model, model.model.layers)
    blocks.put({0: {"qk": INT4}})
    monkeypatch.setattr(attention, "IMPLEMENTATIONS", ("sdpa",))
    with pytest.raises(UnsupportedError, match="cannot be rounded"):
        blocks.put({0: {"pv": INT4}})
    assert torch.equal(logits(model), before)


def test_a_group_that_does_not_divide_names_the_layer():
    model = build("llama")
    blocks = BlockAttention(model, model.model.layers)
    blocks.put({1: {"qk": parse_operand("int4_g32")}})
    with pytest.raises(
        FormatError, match=r"model\.layers\.1\.self_attn: the queries have head_dim"
    ):
        logits(model)
