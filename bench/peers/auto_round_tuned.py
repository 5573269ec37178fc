"""Intel's auto-round (SignRound): 200 steps a block, asymmetric, else its defaults.

.venv-peers/auto_round/bin/python bench/peers/auto_round_tuned.py MODEL DENSE --bits 4 \\
    --group 128 --calibrate tokens.json
"""

import torch
from auto_round import AutoRound
from common import linears, mean_bits, request, require_rounded
from transformers import AutoTokenizer

SCALE_BITS = 16  # a float16 scale, and a zero point of as many bits as a code, for each group


def main() -> None:
    asked = request(__doc__)
    model = asked.load(torch.float32)
    names = [name for name, _ in linears(model)]
    bits = mean_bits(model, lambda x: asked.bits + (SCALE_BITS + asked.bits) / asked.group_of(x))
    ragged = {
        name: {"bits": asked.bits, "group_size": -1, "sym": False}
        for name, linear in linears(model)
        if asked.group_of(linear) != asked.group_size
    }
    tuner = AutoRound(
        model, AutoTokenizer.from_pretrained(asked.model), bits=asked.bits,
        group_size=asked.group_size or -1, sym=False, layer_config=ragged, device_map="cpu",
        enable_torch_compile=False,  # compiling costs more than these small models
        dataset=asked.batches, nsamples=len(asked.batches), seqlen=len(asked.tokens[0]),
    )  # fmt: skip
    tuned, _ = tuner.quantize()
    for name in names:
        require_rounded(asked, tuned.get_submodule(name), name)
    asked.save({name: tuned.get_submodule(name).weight for name in names}, bits)


if __name__ == "__main__":
    main()
