"""One value that is not finite, anywhere, in any dtype."""

import pytest
import torch

from pennyweight.core.finite import is_finite

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("odd", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_one_value_is_enough(dtype, odd, size):
    values = torch.randn(size, generator=torch.Generator().manual_seed(0))
    assert is_finite(values.to(dtype))
    for place in {0, size // 2, size - 1}:
        values[place] = odd
        assert not is_finite(values.to(dtype))
        values[place] = 0


def test_shapes():
    assert is_finite(torch.zeros(0, 4))
    assert is_finite(torch.tensor(1.0))
    values = torch.zeros(3, 4, 5).transpose(0, 2)
    assert is_finite(values)
    values[1, 1, 1] = float("nan")
    assert not is_finite(values)
