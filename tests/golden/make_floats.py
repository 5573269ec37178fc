"""Writes floats.safetensors with the compressed-tensors library (0.20.0), without any code of ours.

    .venv/bin/python tests/golden/make_floats.py

For each scheme: a weight, what the library compresses it to, and what it reads back. The
scales are the library's own; NVFP4's scale of the tensor is a power of two, so that dividing by it
and multiplying by its reciprocal are the same.
"""

from pathlib import Path

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import save_file

FLOAT = {"type": "float", "symmetric": True}
MX = FLOAT | {"strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}
NV = {"strategy": "tensor_group", "group_size": 16, "scale_dtype": "torch.float8_e4m3fn"}
BLOCK = {"strategy": "block", "block_structure": [128, 128]}
SCHEMES = {  # our name -> the library's layout and arguments
    "W8A16_fp8": ("naive-quantized", FLOAT | {"num_bits": 8, "strategy": "channel"}),
    "W8A16_fp8_tensor": ("naive-quantized", FLOAT | {"num_bits": 8, "strategy": "tensor"}),
    "W8A16_fp8_block": ("naive-quantized", FLOAT | {"num_bits": 8} | BLOCK),
    "MXFP4A16": ("mxfp4-pack-quantized", MX | {"num_bits": 4}),
    "MXFP6A16": ("mxfp6-pack-quantized", MX | {"num_bits": 6}),
    "MXFP8A16": ("mxfp8-quantized", MX | {"num_bits": 8}),
    "NVFP4A16": ("nvfp4-pack-quantized", FLOAT | {"num_bits": 4} | NV),
}


def blocks(weight: torch.Tensor, strategy: str, size: int | None) -> torch.Tensor:
    """The weights that share a scale in the last axis, the scales' shape before it."""
    if strategy == "block":
        down, across = (length // 128 for length in weight.shape)
        return weight.view(down, 128, across, 128).transpose(1, 2).flatten(2)
    if strategy == "tensor":
        return weight.view(1, -1)
    return weight.view(len(weight), -1, size or weight.shape[1])


def tensors(name: str) -> dict[str, torch.Tensor]:
    layout, options = SCHEMES[name]
    args = QuantizationArgs(**options)
    scheme = QuantizationScheme(targets=["Linear"], weights=args, format=layout)
    generator = torch.Generator().manual_seed(0)
    rows = 256 if options["strategy"] == "block" else 16
    weight = 0.05 * torch.randn(rows, 128, generator=generator)
    weight *= torch.exp2(torch.randint(-3, 4, (rows, 1), generator=generator))
    weight[3, :40] = 0
    weight = weight.bfloat16().float()
    group = blocks(weight, options["strategy"], options.get("group_size"))
    dense = {"weight": weight}
    if name.startswith("NVFP4"):
        dense["weight_global_scale"] = torch.tensor([2.0**11])
    scale, _ = calculate_qparams(
        group.amin(-1), group.amax(-1), args, global_scale=dense.get("weight_global_scale")
    )
    dense["weight_scale"] = scale.float()
    compressor = BaseCompressor.get_value_from_registry(layout)
    stored = {k: v.contiguous() for k, v in compressor.compress(dense, scheme).items()}
    back = compressor.decompress(dict(stored), scheme)["weight"]
    return {"source": weight.bfloat16(), "decoded": back.contiguous()} | stored


def main() -> None:
    file = {f"{name}.{key}": tensor for name in SCHEMES for key, tensor in tensors(name).items()}
    save_file(file, Path(__file__).with_name("floats.safetensors"))


if __name__ == "__main__":
    main()
