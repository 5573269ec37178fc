"""GPTQ as its paper states it: one column at a time, every later column updated at once, float64.

Frantar et al. 2022, https://arxiv.org/abs/2210.17323, algorithm 1 with a block size of one.
"""

from dataclasses import replace

import torch

from pennyweight.formats.rounding import fit


def gptq_by_column(weight, format, hessian, *, damp, act_order=False, fit_range=fit):
    """The dequantized weight, in float64. fit_range: (weight, format) -> (scale, zero_point)."""
    count = weight.shape[1]
    size = format.group_size or count
    hessian = hessian.double()
    damped = hessian + damp * hessian.diagonal().mean() * torch.eye(count, dtype=torch.float64)
    order = torch.arange(count)
    if act_order:
        order = hessian.diagonal().argsort(descending=True, stable=True)
    upper = torch.linalg.cholesky(torch.linalg.inv(damped[order][:, order]), upper=True)
    left, out = weight.double()[:, order], torch.empty(weight.shape, dtype=torch.float64)
    one = replace(format, group_size=None)
    fixed = [fit_range(weight[:, i : i + size].double(), one) for i in range(0, count, size)]
    for position, column in enumerate(order.tolist()):
        if not act_order and column % size == 0:
            fixed[column // size] = fit_range(left[:, column : column + size], one)
        scale, zero_point = fixed[column // size]
        zero = format.grid.middle if zero_point is None else zero_point
        code = format.grid.encode(left[:, [position]] / scale + zero)
        rounded = (format.grid.decode(code) - zero) * scale
        error = (left[:, [position]] - rounded) / upper[position, position]
        left[:, position:] -= error * upper[position, position:]
        out[:, [column]] = rounded
    return out
