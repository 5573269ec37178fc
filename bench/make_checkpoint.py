"""Write a random Llama checkpoint of a given shape: something to time where nothing downloads.

    python bench/make_checkpoint.py llama-1.1b /tmp/llama-1.1b [--layers 2] [--tokenizer DIR]

Speed and memory do not depend on the values of the weights; accuracy does, so measure none here.
A tensor is drawn, written and dropped, so 7B parameters need no more memory than their largest.
"""

import argparse
import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import torch

SHAPES = {  # of TinyLlama-1.1B and Llama-2-7B
    "llama-1.1b": {
        "hidden": 2048,
        "layers": 22,
        "heads": 32,
        "kv_heads": 4,
        "intermediate": 5632,
        "vocab": 32000,
    },
    "llama-7b": {
        "hidden": 4096,
        "layers": 32,
        "heads": 32,
        "kv_heads": 32,
        "intermediate": 11008,
        "vocab": 32000,
    },
}
BF16_BYTES = 2
SHARD_BYTES = 1_900_000_000
STD = 0.02  # transformers' initializer_range for this family


def make_config(shape: dict[str, int]) -> dict:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_act": "silu",
        "hidden_size": shape["hidden"],
        "intermediate_size": shape["intermediate"],
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["kv_heads"],
        "vocab_size": shape["vocab"],
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def tensors(shape: dict[str, int]) -> Iterator[tuple[str, list[int]]]:
    """Name and shape of every parameter, in the order of the forward pass."""
    hidden, intermediate, vocab = shape["hidden"], shape["intermediate"], shape["vocab"]
    kv = hidden // shape["heads"] * shape["kv_heads"]
    yield "model.embed_tokens.weight", [vocab, hidden]
    for index in range(shape["layers"]):
        prefix = f"model.layers.{index}."
        yield prefix + "input_layernorm.weight", [hidden]
        yield prefix + "self_attn.q_proj.weight", [hidden, hidden]
        yield prefix + "self_attn.k_proj.weight", [kv, hidden]
        yield prefix + "self_attn.v_proj.weight", [kv, hidden]
        yield prefix + "self_attn.o_proj.weight", [hidden, hidden]
        yield prefix + "post_attention_layernorm.weight", [hidden]
        yield prefix + "mlp.gate_proj.weight", [intermediate, hidden]
        yield prefix + "mlp.up_proj.weight", [intermediate, hidden]
        yield prefix + "mlp.down_proj.weight", [hidden, intermediate]
    yield "model.norm.weight", [hidden]
    yield "lm_head.weight", [vocab, hidden]


def size_bytes(shape: list[int]) -> int:
    return torch.Size(shape).numel() * BF16_BYTES


def split(
    named: list[tuple[str, list[int]]], limit_bytes: int
) -> list[list[tuple[str, list[int]]]]:
    """Consecutive tensors in files of at most `limit_bytes`; a larger tensor gets its own."""
    shards, used = [[]], 0
    for name, shape in named:
        if shards[-1] and used + size_bytes(shape) > limit_bytes:
            shards.append([])
            used = 0
        shards[-1].append((name, shape))
        used += size_bytes(shape)
    return shards


def write_shard(file: Path, named: list[tuple[str, list[int]]], generator: torch.Generator) -> None:
    """One safetensors file: header length, JSON header, then the tensors end to end.

    By hand because safetensors' own writer takes all tensors of a file at once.
    """
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in named:
        end = offset + size_bytes(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data must begin on a multiple of 8
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for _, shape in named:
            tensor = torch.empty(shape, dtype=torch.bfloat16)
            tensor = (
                tensor.normal_(0, STD, generator=generator) if len(shape) > 1 else tensor.fill_(1)
            )
            stream.write(tensor.view(torch.uint8).numpy())


def make_checkpoint(
    out: Path, shape: dict[str, int], shard_bytes: int = SHARD_BYTES, seed: int = 0
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(make_config(shape), indent=2))
    named = list(tensors(shape))
    shards = split(named, shard_bytes)
    generator = torch.Generator().manual_seed(seed)
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_shard(out / file, shard, generator)
        weight_map |= dict.fromkeys((name for name, _ in shard), file)
    total = sum(size_bytes(tensor_shape) for _, tensor_shape in named)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, help="fewer than the shape's own")
    parser.add_argument(
        "--tokenizer", type=Path, help="copy the tokenizer of this model; its vocabulary must fit"
    )
    parser.add_argument("--shard-bytes", type=int, default=SHARD_BYTES)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    shape = SHAPES[args.shape] | ({"layers": args.layers} if args.layers else {})
    make_checkpoint(args.out, shape, args.shard_bytes, args.seed)
    if args.tokenizer:
        for file in args.tokenizer.glob("tokenizer*"):
            shutil.copy(file, args.out)


if __name__ == "__main__":
    main()
