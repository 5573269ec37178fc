"""Gradients by autograd over the whole model at once, one sample after the other."""

import torch
from torch.nn.functional import cross_entropy

from pennyweight.model.capture import set_parameters


def weight_gradients(skeleton, rows) -> dict[str, dict[str, torch.Tensor]]:
    """Tensor -> {abs_gradient, squared_gradient}: sums over samples, in float64.

    The loss of a sample is the mean cross-entropy of its next tokens.
    """
    model, sums = skeleton.model, {}
    set_parameters(model, {name: skeleton.read(s).float() for name, s in skeleton.sources.items()})
    model.requires_grad_(True)
    for row in rows:
        model.zero_grad()
        logits = model(input_ids=row[None], use_cache=False).logits[0]
        cross_entropy(logits[:-1], row[1:]).backward()
        for name, parameter in model.named_parameters():
            gradient = parameter.grad
            if gradient is None:  # an expert that saw no token
                gradient = torch.zeros(parameter.shape)
            size = gradient.double().abs()
            total = sums.setdefault(skeleton.sources[name].key, {})
            for kind, value in {"abs_gradient": size, "squared_gradient": size.square()}.items():
                total[kind] = total.get(kind, 0) + value
    return sums
