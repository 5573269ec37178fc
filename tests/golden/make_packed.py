"""Writes packed.safetensors with the compressed-tensors library (0.20.0), without any code of ours.

    .venv/bin/python tests/golden/make_packed.py

For each width: codes (signed, [20, 24]), what the library packs them into, the dequantized weight,
and the same with zero points (packed along the output axis).
"""

from pathlib import Path

import torch
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import save_file

# 20 rows: below two words the library cannot unpack its own zero points.
ROWS, COLS, GROUP = 20, 24, 8


def tensors(bits: int, symmetric: bool) -> dict[str, torch.Tensor]:
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    count = torch.arange(ROWS * COLS).view(ROWS, COLS)
    codes = (count * 7 % 2**bits + low).to(torch.int8)
    codes[0, 0], codes[0, 1] = low, high
    scale = (1 + torch.arange(ROWS * COLS // GROUP).view(ROWS, -1)) / 64
    zero = ((torch.arange(ROWS * COLS // GROUP).view(ROWS, -1) * 5) % 2**bits + low).to(torch.int8)
    zero = torch.zeros_like(zero) if symmetric else zero
    args = QuantizationArgs(
        num_bits=bits, type="int", symmetric=symmetric, strategy="group", group_size=GROUP
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=args, format="pack-quantized")
    by_group = lambda value: value.repeat_interleave(GROUP, 1).float()
    weight = (codes.float() - by_group(zero)) * by_group(scale)
    dense = {"weight": weight, "weight_scale": scale}
    if not symmetric:
        dense["weight_zero_point"] = zero
    stored = PackedQuantizationCompressor.compress(dense, scheme)
    stored = {name: tensor.contiguous() for name, tensor in stored.items()}
    back = PackedQuantizationCompressor.decompress(dict(stored), scheme)["weight"]
    assert torch.equal(back, weight)
    found = {"codes": codes, "weight": weight} | stored
    if not symmetric:
        found["zero_point"] = zero
    return found


def main() -> None:
    file = {
        f"{'sym' if symmetric else 'asym'}{bits}.{name}": tensor
        for bits in range(2, 9)
        for symmetric in (True, False)
        for name, tensor in tensors(bits, symmetric).items()
    }
    save_file(file, Path(__file__).with_name("packed.safetensors"))


if __name__ == "__main__":
    main()
