"""AWQ of Intel neural-compressor: scales and clipping searched, asymmetric, else its defaults.

.venv-peers/neural_compressor/bin/python bench/peers/neural_compressor_awq.py MODEL DENSE \\
    --bits 4 --group 128 --calibrate tokens.json
"""

import torch
from common import linears, mean_bits, request
from neural_compressor.torch.algorithms.weight_only.modules import INCWeightOnlyLinear, MulLinear
from neural_compressor.torch.quantization import AWQConfig, convert, prepare

SCALE_BITS = 16  # a float16 scale, and a zero point of as many bits as a code, for each group


def config_of(asked, model) -> AWQConfig:
    """One configuration for the model, and one for each linear that the group does not divide."""
    shared = {"bits": asked.bits, "use_sym": False}
    config = AWQConfig(group_size=asked.group_size or -1, **shared)
    for name, linear in linears(model):
        if asked.group_of(linear) != asked.group_size:
            config.set_local(name, AWQConfig(group_size=-1, **shared))
    config.set_local("lm_head", AWQConfig(dtype="fp32"))
    return config


def computed(module: torch.nn.Module) -> torch.Tensor:
    """The weight [out, in] that gives the module's output, with what scales its input."""
    if isinstance(module, MulLinear):
        return computed(module.linear) * module.input_scale.view(1, -1)
    return module.recover() if isinstance(module, INCWeightOnlyLinear) else module.weight


def main() -> None:
    asked = request(__doc__)
    model = asked.load(torch.float32)
    model.config.use_cache = False
    bits = mean_bits(model, lambda x: asked.bits + (SCALE_BITS + asked.bits) / asked.group_of(x))
    names = [name for name, _ in linears(model)]
    model = prepare(model, config_of(asked, model), example_inputs=asked.batches[0])
    with torch.no_grad():
        for ids in asked.batches:
            model(ids)
    model = convert(model)
    weights = {name: computed(model.get_submodule(name)) for name in names}
    norms = {name: value for name, value in model.named_parameters() if "norm" in name}
    asked.save(weights, bits, norms)


if __name__ == "__main__":
    main()
