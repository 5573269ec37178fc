"""The tensors that compressed-tensors stores for one linear, from our own stored parts and back.

    pack-quantized   weight_packed int32, weight_scale, weight_shape int64 [2],
                     weight_zero_point int32 packed along the *output* axis
    int-quantized    weight int8 (code - middle), weight_scale; input_scale [1] if it is static

Codes are stored unsigned (signed code + 2^(bits-1)), lowest bits first: our own packing, read as
int32. Layout: vllm-project/compressed-tensors, compressors/pack_quantized.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pennyweight.core import Format, FormatError, QTensor, Scheme
from pennyweight.formats.bits import pack_bits, packed_bytes, unpack_bits

PACKED, INTEGER = "pack-quantized", "int-quantized"
WORD = 4  # bytes of an int32
Read = Callable[[str], Tensor]  # a part as `formats.storage.pack` names it


@dataclass(frozen=True)
class Part:
    """One stored tensor: what it will be, and how to make it from our own parts."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[Read], Tensor]


def layout(scheme: Scheme) -> str:
    """Which of the library's formats a scheme is stored in."""
    return PACKED if scheme.activation is None else INTEGER


def parts(scheme: Scheme, shape: tuple[int, int]) -> dict[str, Part]:
    """Suffix of the module's name -> Part, for a weight of this shape [out, in].

    Raises FormatError for what the format cannot hold.
    """
    format, groups = scheme.weight, scheme.weight.groups(*shape)
    if isinstance(format.scale, Format) or isinstance(format.zero_point, Format):
        raise FormatError(
            "compressed-tensors has no integer format whose scale is itself quantized"
        )
    scale = Part(format.scale, groups, lambda read: read("scale"))
    if layout(scheme) == INTEGER:
        found = {
            "weight": Part(torch.int8, shape, lambda read: _signed(read("codes"), format, shape))
        }
        found["weight_scale"] = scale
        if scheme.activation is not None and not scheme.activation.dynamic:
            to_scale = lambda read: read("input_scale").view(1).to(format.scale)
            found["input_scale"] = Part(format.scale, (1,), to_scale)
        return found
    found = {
        "weight_packed": Part(
            torch.int32,
            (shape[0], packed_bytes(shape[1], format.grid.bits) // WORD),
            lambda read: read("codes").view(torch.int32),
        ),
        "weight_scale": scale,
        "weight_shape": Part(torch.int64, (2,), lambda _: torch.tensor(shape, dtype=torch.int64)),
    }
    if not format.symmetric:
        words = packed_bytes(shape[0], format.grid.bits) // WORD
        if words == 1:  # its unpacking takes a single word for a row of another shape
            raise FormatError(
                f"out_features {shape[0]}: the compressed-tensors library cannot read the zero "
                f"points of fewer than {32 // format.grid.bits + 1} outputs; use a symmetric scheme"
            )
        found["weight_zero_point"] = Part(
            torch.int32,
            (words, groups[1]),
            lambda read: _along_out(read("zero_point"), format, groups),
        )
    return found


def decode(stored: dict[str, Tensor], scheme: Scheme) -> QTensor:
    """The QTensor behind the tensors of one linear."""
    grid, scale = scheme.weight.grid, stored["weight_scale"].float()
    if layout(scheme) == INTEGER:
        codes = (stored["weight"].to(torch.int16) + int(grid.middle)).to(torch.uint8)
        return QTensor(format=scheme.weight, codes=codes, scale=scale)
    rows, cols = stored["weight_shape"].tolist()
    codes = unpack_bits(stored["weight_packed"].view(torch.uint8), grid.bits, cols)
    zero_point = None
    if not scheme.weight.symmetric:
        along_out = stored["weight_zero_point"].T.contiguous().view(torch.uint8)
        zero_point = unpack_bits(along_out, grid.bits, rows).T.float().contiguous()
    return QTensor(format=scheme.weight, codes=codes, scale=scale, zero_point=zero_point)


def _signed(packed: Tensor, format: Format, shape: tuple[int, int]) -> Tensor:
    codes = unpack_bits(packed, format.grid.bits, shape[1])
    return (codes.to(torch.int16) - int(format.grid.middle)).to(torch.int8)


def _along_out(packed: Tensor, format: Format, groups: tuple[int, int]) -> Tensor:
    zero_point = unpack_bits(packed, format.grid.bits, groups[1])
    words = pack_bits(zero_point.T.contiguous(), format.grid.bits).view(torch.int32)
    return words.T.contiguous()
