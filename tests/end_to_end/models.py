"""Tiny random models of every family, saved as checkpoints; and what the tests here share."""

import json
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pennyweight.pipeline.recipe import Recipe, parse_recipe

VOCAB = 128
_SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
_HEADS = _SHAPE | {"head_dim": 16}
_MOE = _HEADS | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}

FAMILIES = {
    "llama": _SHAPE,
    "qwen2": _SHAPE,
    "qwen3": _HEADS,
    "mistral": _SHAPE | {"sliding_window": 8},
    "gemma": _HEADS,
    "gemma2": _HEADS | {"sliding_window": 8},
    "gemma3_text": _HEADS | {"sliding_window": 8},
    "phi": _SHAPE,
    "phi3": _SHAPE,
    "opt": {
        "hidden_size": 64,
        "ffn_dim": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "word_embed_proj_dim": 64,
    },
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "gptj": {"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8, "n_positions": 64},
    "mixtral": _SHAPE | {"num_local_experts": 4},
    "qwen2_moe": _MOE | {"shared_expert_intermediate_size": 64, "decoder_sparse_step": 1},
    "qwen3_moe": _MOE,
    "deepseek_v3": _SHAPE
    | {"num_key_value_heads": 4, "moe_intermediate_size": 32, "n_routed_experts": 4}
    | {"num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 1}
    | {"n_group": 1, "topk_group": 1, "q_lora_rank": 32, "kv_lora_rank": 32}
    | {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16},
    "granitemoe": _SHAPE | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "llama4_text": _HEADS
    | {"intermediate_size": 32, "intermediate_size_mlp": 96, "num_local_experts": 4}
    | {"num_experts_per_tok": 2, "interleave_moe_layer_step": 1, "attention_chunk_size": 8},
}
JOINED = ("granitemoe", "llama4_text")  # the experts of a layer in one 3-D tensor
MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v3", *JOINED)


def build(family: str, *, seed: int = 0, **changes):
    """The model, in float32 and eval mode. Biases and norms are random too, so that losing one
    shows."""
    config = AutoConfig.for_model(
        family, **FAMILIES[family] | {"vocab_size": VOCAB, "pad_token_id": 0} | changes,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def save(model, folder: Path, *, dtype: torch.dtype = torch.float32, shard: str = "5GB") -> Path:
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    return folder


def save_tokens(folder: Path, *, samples: int = 8, tokens: int = 24, seed: int = 0) -> Path:
    """A calibration file of random token ids, which needs no tokenizer."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCAB, (samples, tokens), generator=generator)
    file = folder / "tokens.json"
    file.write_text(json.dumps(ids.tolist()))
    return file


def make_recipe(model: Path, data: Path, *rules: dict, **top) -> Recipe:
    """Calibrated on 8 samples of 24 tokens. `rules` are dictionaries as in a recipe file."""
    calibrate = {"data": [str(data)], "samples": 8, "tokens": 24}
    return parse_recipe({"model": str(model), "calibrate": calibrate, "rule": list(rules), **top})


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, by its relative name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
