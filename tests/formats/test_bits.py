"""Packing: dense, little-endian, padded to words; and the inverse of unpacking."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pennyweight.formats.bits import pack_bits, packed_bytes, unpack_bits


@given(bits=st.integers(1, 8), rows=st.integers(0, 5), cols=st.integers(0, 70), seed=st.integers(0))
def test_unpack_inverts_pack(bits, rows, cols, seed):
    generator = torch.Generator().manual_seed(seed % 2**63)
    codes = torch.randint(0, 2**bits, (rows, cols), generator=generator, dtype=torch.uint8)
    packed = pack_bits(codes, bits)
    assert packed.shape == (rows, packed_bytes(cols, bits))
    assert torch.equal(unpack_bits(packed, bits, cols), codes)


@given(bits=st.integers(1, 8), cols=st.integers(1, 70), seed=st.integers(0, 2**31))
def test_the_stream_is_one_number_written_lowest_bit_first(bits, cols, seed):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (1, cols), generator=generator, dtype=torch.uint8)
    number = sum(code << (i * bits) for i, code in enumerate(codes[0].tolist()))
    packed = bytes(pack_bits(codes, bits)[0].tolist())
    assert packed == number.to_bytes(packed_bytes(cols, bits), "little")


@given(bits=st.integers(1, 8), cols=st.integers(0, 10_000))
def test_no_more_is_stored_than_the_last_word_needs(bits, cols):
    assert 0 <= 8 * packed_bytes(cols, bits) - bits * cols < 32
    assert packed_bytes(cols, bits) % 4 == 0


def test_layout_of_known_bytes():
    # Written out by hand: 3-bit codes 1..7, 0; the first code is in the lowest bits.
    codes = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 0]], dtype=torch.uint8)
    assert pack_bits(codes, 3).tolist() == [[0b11010001, 0b01011000, 0b00011111, 0]]


@pytest.mark.parametrize("bits", range(1, 9))
def test_arguments_are_left_alone(bits):
    codes = torch.full((3, 11), 2**bits - 1, dtype=torch.uint8)
    packed = pack_bits(codes, bits)
    before = packed.clone()
    unpack_bits(packed, bits, 11)
    assert torch.equal(codes, torch.full_like(codes, 2**bits - 1)) and torch.equal(packed, before)
