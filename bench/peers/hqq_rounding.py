"""HQQ: half-quadratic quantization without data, at its defaults (axis 1).

.venv-peers/hqq/bin/python bench/peers/hqq_rounding.py MODEL DENSE --bits 4 --group 128 \\
    --calibrate tokens.json
"""

import torch
from common import linears, mean_bits, request
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

SCALE_BITS = ZERO_BITS = (
    16  # float16 each; its codes of 3 bits are counted as 3, though it stores 4
)


def main() -> None:
    asked = request(__doc__)
    model = asked.load(torch.float32)
    weights = {}
    for name, linear in linears(model):
        config = BaseQuantizeConfig(nbits=asked.bits, group_size=asked.group_of(linear), axis=1)
        rounded = HQQLinear(
            linear, config, compute_dtype=torch.float32, device="cpu", del_orig=False
        )
        weights[name] = rounded.dequantize()
    bits = mean_bits(model, lambda x: asked.bits + (SCALE_BITS + ZERO_BITS) / asked.group_of(x))
    asked.save(weights, bits)


if __name__ == "__main__":
    main()
