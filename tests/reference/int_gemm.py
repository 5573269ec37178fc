"""y = x W^T as an engine runs it on dual-grained weights: one int8 x int8 -> int32 product."""

import numpy as np

from pennyweight.core import QTensor


def dual_grained_linear(q: QTensor, x_codes, x_scale):
    """[tokens, out] in float64, from the stored parts alone.

    x_codes: int8 [tokens, in]; x_scale: [tokens, 1], or [1, 1] if it is static.
    """
    size = q.codes.shape[1] // q.scale.codes.shape[1]
    spread = lambda part: np.repeat(np.asarray(part), size, axis=1)
    k = q.scale.codes.numpy().astype(np.int16) - 128
    steps = (q.codes.numpy().astype(np.int16) - spread(q.zero_point.to(int)).astype(np.int16)) * (
        spread(k)
    )
    weight = steps.astype(np.int8)
    assert (weight == steps).all(), "the product of code and group scale left int8"
    accumulated = x_codes.astype(np.int32) @ weight.astype(np.int32).T  # the int32 accumulator
    row = q.scale.scale.numpy().astype(np.float64)
    return accumulated.astype(np.float64) * row.T * x_scale
