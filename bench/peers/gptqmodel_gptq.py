"""GPTQModel's GPTQ at its defaults.

GPTQMODEL_CPU_WORKERS=2 .venv-peers/gptqmodel/bin/python bench/peers/gptqmodel_gptq.py MODEL \\
    DENSE --bits 4 --group 128 --calibrate tokens.json
"""

import os
import tempfile

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # its pool dies of one worker on two cores

from common import linears, mean_bits, request
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

SCALE_BITS = 16  # a float16 scale, and a zero point of as many bits as a code, for each group


def config_of(asked, model) -> QuantizeConfig:
    ragged = {
        f"+:^{name}$".replace(".", r"\."): {"group_size": -1}
        for name, linear in linears(model)
        if asked.group_of(linear) != asked.group_size
    }
    size = asked.group_size or -1
    return QuantizeConfig(bits=asked.bits, group_size=size, dynamic=ragged or None, device="cpu")


def main() -> None:
    asked = request(__doc__)
    plain = asked.load()
    names = [name for name, _ in linears(plain)]
    bits = mean_bits(plain, lambda x: asked.bits + (SCALE_BITS + asked.bits) / asked.group_of(x))
    model = GPTQModel.load(str(asked.model), config_of(asked, plain))
    data = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in asked.tokens]
    model.quantize(data, batch_size=1)
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        made = GPTQModel.load(folder, device="cpu", backend=BACKEND.GPTQ_TORCH).model
        weights = {name: made.get_submodule(name).dequantize_weight().T for name in names}
    asked.save(weights, bits)


if __name__ == "__main__":
    main()
