"""Codes of 1 to 8 bits as a dense little-endian bit stream along the last axis.

Code i of a row occupies bits i * bits .. (i + 1) * bits - 1 of the row, lowest bit first; a row is
padded with zero bits to a multiple of 4 bytes. Read as little-endian int32 words this is the layout
of compressed-tensors' `weight_packed`, so exporting it is a change of dtype and no repacking.
"""

import torch
from jaxtyping import UInt8
from torch import Tensor

WORD_BYTES = 4  # rows are padded to this, because readers see int32 words


def packed_bytes(cols: int, bits: int) -> int:
    """Bytes of one packed row of `cols` codes."""
    return -(-cols * bits // (8 * WORD_BYTES)) * WORD_BYTES


def pack_bits(codes: UInt8[Tensor, "rows cols"], bits: int) -> UInt8[Tensor, "rows bytes"]:
    rows, cols = codes.shape
    width = packed_bytes(cols, bits)
    padded = torch.nn.functional.pad(codes, (0, -cols % 8))
    octets = padded.view(
        rows, padded.shape[1] // 8, 8
    )  # 8 codes fill exactly `bits` bytes, for any number of bits
    out = torch.zeros(rows, octets.shape[1], bits, dtype=torch.uint8)
    for i in range(8):
        byte, offset = divmod(i * bits, 8)
        out[:, :, byte] |= octets[:, :, i] << offset
        if offset + bits > 8:
            out[:, :, byte + 1] |= octets[:, :, i] >> (8 - offset)
    flat = out.flatten(1)
    return torch.nn.functional.pad(flat, (0, width - flat.shape[1]))


def unpack_bits(
    packed: UInt8[Tensor, "rows bytes"], bits: int, cols: int
) -> UInt8[Tensor, "rows cols"]:
    rows, octets = packed.shape[0], -(-cols // 8)
    packed = torch.nn.functional.pad(packed, (0, max(octets * bits - packed.shape[1], 0)))
    stream = packed[:, : octets * bits].reshape(rows, octets, bits)
    out = torch.empty(rows, octets, 8, dtype=torch.uint8)
    for i in range(8):
        byte, offset = divmod(i * bits, 8)
        value = stream[:, :, byte] >> offset
        if offset + bits > 8:
            value = value | stream[:, :, byte + 1] << (8 - offset)
        out[:, :, i] = value & (2**bits - 1)
    return out.flatten(1)[:, :cols].contiguous()
