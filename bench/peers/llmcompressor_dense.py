"""llm-compressor's GPTQ at its defaults, asymmetric, written out as plain weights.

.venv-peers/llmcompressor/bin/python bench/peers/llmcompressor_dense.py MODEL DENSE --bits 4 \\
    --group 128 --calibrate tokens.json
"""

import torch
from common import linears, mean_bits, request
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from torch.utils.data import DataLoader

SCALE_BITS = 16  # a scale in the model's dtype, and a zero point of as many bits as a code


def scheme_of(bits: int, names: list[str], group_size: int | None) -> QuantizationScheme:
    weights = QuantizationArgs(
        num_bits=bits, symmetric=False, strategy="group" if group_size else "channel",
        group_size=group_size,
    )  # fmt: skip
    return QuantizationScheme(targets=names, weights=weights)


def main() -> None:
    asked = request(__doc__)
    model = asked.load()
    groups: dict[int | None, list[str]] = {}
    for name, linear in linears(model):
        size = asked.group_of(linear)
        groups.setdefault(size if size == asked.group_size else None, []).append(name)
    schemes = {
        f"group_{number}": scheme_of(asked.bits, names, size)
        for number, (size, names) in enumerate(groups.items())
    }
    bits = mean_bits(model, lambda x: asked.bits + (SCALE_BITS + asked.bits) / asked.group_of(x))
    batches = [{"input_ids": x, "attention_mask": torch.ones_like(x)} for x in asked.batches]
    loader = DataLoader(batches, batch_size=None)
    modifier = GPTQModifier(config_groups=schemes, ignore=["lm_head"])
    oneshot(model=model, recipe=modifier, dataset=loader, processor=object())
    # It leaves the rounded weights in place: what it packs when it saves.
    asked.save({name: linear.weight for name, linear in linears(model)}, bits)


if __name__ == "__main__":
    main()
