"""What is stored is what was computed, bit for bit, and takes the bytes that are reported."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pennyweight.core import QTensor
from pennyweight.formats.rounding import round_to_nearest
from pennyweight.formats.storage import bits_per_weight, pack, stored_bytes, unpack
from tests.formats.examples import formats, looked_up, shifts, sizes, weights

FORMATS = formats() | looked_up()


def assert_equal(a, b) -> None:
    """The same QTensor, at every level."""
    if not isinstance(a, QTensor):
        assert (a is None and b is None) or torch.equal(a, b)
        return
    assert a.format == b.format and torch.equal(a.codes, b.codes)
    assert_equal(a.scale, b.scale)
    assert_equal(a.zero_point, b.zero_point)
    assert_equal(a.table, b.table)


@pytest.mark.parametrize("name", FORMATS)
@given(
    rows=st.integers(1, 7),
    groups=st.integers(1, 3),
    seed=st.integers(0, 99),
    size=sizes,
    shift=shifts,
)
def test_unpack_inverts_pack(name, rows, groups, seed, size, shift):
    format = FORMATS[name]
    weight = weights(rows, 64 * groups, seed, size=size, shift=shift)
    q = round_to_nearest(weight, format)
    back = unpack(pack(q), format, tuple(weight.shape))
    assert_equal(back, q)
    assert torch.equal(back.dequantize(), q.dequantize())


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", [(1, 64), (3, 192), (33, 128)])
def test_reported_bytes_are_the_bytes(name, shape):
    stored = pack(round_to_nearest(weights(*shape, seed=0), FORMATS[name]))
    real = sum(part.numel() * part.itemsize for part in stored.values())
    assert stored_bytes(FORMATS[name], shape) == real
    assert bits_per_weight(FORMATS[name], shape) == 8 * real / (shape[0] * shape[1])


def test_bits_per_weight_by_hand():
    # 4 bits and, for 128 weights, 16 bits of scale; zero points of 4 bits fill words of 32.
    assert bits_per_weight(FORMATS["W4A16"], (8, 128)) == 4 + 16 / 128
    assert bits_per_weight(FORMATS["W4A16_g32_asym"], (8, 256)) == 4 + 16 / 32 + 4 / 32
