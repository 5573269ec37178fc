"""Which channel feeds which, found by trying; against what is known of each family."""

import pytest
import torch

from pennyweight.model.capture import capture
from pennyweight.model.checkpoint import Checkpoint
from pennyweight.model.feeds import find_feed
from pennyweight.model.skeleton import Skeleton
from pennyweight.model.stream import Block
from pennyweight.model.workers import start_workers
from pennyweight.pipeline.survey import survey
from tests.end_to_end.models import VOCAB, build, save

HEADS, KV_HEADS, DIM, INNER = 4, 2, 16, 96


def feed(tmp_path, family, producer, consumer, **changes):
    """The feed from one layer of block 0 to the input of another."""
    source = save(build(family, **changes), tmp_path / "source")
    skeleton = Skeleton.build(Checkpoint.open(source))
    topology = survey(skeleton).topologies[0]
    rows = torch.randint(VOCAB, (1, 12), generator=torch.Generator().manual_seed(0))
    samples = capture(skeleton, rows, torch.float32)
    block = Block(skeleton, 0, topology, torch.float32)
    group = next(group for group in topology.groups if consumer in group.linears)
    with start_workers(1) as workers, block.loaded(), torch.no_grad():
        before = {k: v.clone() for k, v in block.module.named_parameters()}
        found = find_feed(
            block.module, producer, lambda: block.inputs([group], samples, workers)[0][0]
        )
        assert all(torch.equal(v, before[k]) for k, v in block.module.named_parameters())
    return found


def grouped_queries():
    """Channel (head, d) of o's input comes from channel (head // share, d) of v."""
    channel = torch.arange(HEADS * DIM)
    return channel // DIM // (HEADS // KV_HEADS) * DIM + channel % DIM


SAME = torch.arange(64)


@pytest.mark.parametrize(
    "family,producer,consumer,channels,offset",
    [
        ("llama", "input_layernorm", "self_attn.k_proj", SAME, 0),
        ("llama", "post_attention_layernorm", "mlp.up_proj", SAME, 0),
        ("llama", "self_attn.v_proj", "self_attn.o_proj", grouped_queries(), 0),
        ("llama", "mlp.up_proj", "mlp.down_proj", torch.arange(INNER), 0),
        ("gemma", "input_layernorm", "self_attn.q_proj", SAME, 1),
        ("opt", "self_attn_layer_norm", "self_attn.q_proj", SAME, 0),
        ("opt", "fc1", "fc2", torch.arange(INNER), 0),  # a ReLU lets a positive scale through
        ("gpt2", "ln_1", "attn.c_attn", SAME, 0),
        ("gpt2", "attn.c_attn", "attn.c_proj", 2 * 64 + SAME, 0),  # the third third is v
        ("phi3", "mlp.gate_up_proj", "mlp.down_proj", INNER + torch.arange(INNER), 0),
    ],
)
def test_feeds_of_known_families(tmp_path, family, producer, consumer, channels, offset):
    found = feed(tmp_path, family, producer, consumer)
    assert found is not None and found.producer == producer and found.offset == offset
    assert torch.equal(found.channels, channels)


@pytest.mark.parametrize(
    "family,producer,consumer",
    [
        ("llama", "mlp.gate_proj", "mlp.down_proj"),  # SiLU is not linear
        ("llama", "self_attn.q_proj", "self_attn.o_proj"),  # nor is the softmax
        ("llama", "self_attn.o_proj", "mlp.down_proj"),  # goes through the residual and a norm
        ("gpt2", "mlp.c_fc", "mlp.c_proj"),  # GELU
        ("qwen3", "self_attn.k_proj", "self_attn.o_proj"),  # a norm in between undoes any scale
    ],
)
def test_what_does_not_let_a_scale_through_is_no_feed(tmp_path, family, producer, consumer):
    assert feed(tmp_path, family, producer, consumer) is None
