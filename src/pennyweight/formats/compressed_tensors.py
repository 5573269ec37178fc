"""The tensors that compressed-tensors stores for one linear, from our own stored parts and back.

    pack-quantized         weight_packed int32, weight_scale, weight_shape int64 [2],
                           weight_zero_point int32 packed along the *output* axis
    int-quantized          weight int8 (code - middle), weight_scale
    float-quantized        weight float8_e4m3fn, weight_scale ([1] for a tensor)
    naive-quantized        the same without rounded inputs
    mxfp8-quantized        weight float8_e4m3fn, weight_scale uint8 (the exponent + 127)
    mxfp4-, mxfp6-pack-    weight_packed uint8, weight_scale uint8
    nvfp4-pack-quantized   weight_packed uint8, weight_scale float8_e4m3fn, weight_global_scale [1],
                           by which the scales are *divided*
    any, if it is static   input_scale [1]; nvfp4: input_global_scale [1], the reciprocal

Packed integers are stored unsigned (signed code + 2^(bits-1)); all codes lowest bits first: our own
packing, read as int32 or bytes. Layout: vllm-project/compressed-tensors, compressors/.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pennyweight.core import Format, FormatError, QTensor, Scheme
from pennyweight.formats.bits import packed_bytes, unpack_bits
from pennyweight.formats.schemes import E8M0, MX_GROUP, NV_GROUP

PACKED, INTEGER = "pack-quantized", "int-quantized"
FLOAT, NAIVE = "float-quantized", "naive-quantized"
NVFP4, MXFP8 = "nvfp4-pack-quantized", "mxfp8-quantized"
MX = {"e2m1": "mxfp4-pack-quantized", "e2m3": "mxfp6-pack-quantized", "e4m3": MXFP8}
WORD = 4  # bytes of an int32
Read = Callable[[str], Tensor]  # a part as `formats.storage.pack` names it


@dataclass(frozen=True)
class Part:
    """One stored tensor: what it will be, and how to make it from our own parts."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[Read], Tensor]


def layout(scheme: Scheme) -> str:
    """Which of the library's formats a scheme is stored in. Raises FormatError if in none."""
    format = scheme.weight
    found = _layout(format, has_inputs=scheme.activation is not None)
    if found is None or not _says_inputs(scheme):
        raise FormatError(
            f"compressed-tensors has no layout for the scheme {scheme.name}; "
            "use the target packed or dense, or another scheme"
        )
    return found


def _layout(format: Format, has_inputs: bool) -> str | None:
    kind = (format.grid.name, format.group_size, format.group_rows)
    if isinstance(format.scale, Format):
        return NVFP4 if kind == ("e2m1", NV_GROUP, 1) and format.scale.grid.name == "e4m3" else None
    if format.scale is E8M0:
        return MX.get(format.grid.name) if kind[1:] == (MX_GROUP, 1) else None
    if format.grid.name == "e4m3":
        return FLOAT if has_inputs else NAIVE
    if not format.grid.name.startswith("int") or format.zero_point not in (None, torch.uint8):
        return None
    if format.scale is None:
        return None
    if has_inputs:
        return INTEGER if kind[:2] == ("int8", None) and format.symmetric else None
    return PACKED if format.group_rows == 1 else None


def _says_inputs(scheme: Scheme) -> bool:
    """Whether its configuration can say how the inputs are rounded: not by which exponent rule,
    nor otherwise than weights whose scales are powers of two."""
    if scheme.activation is None:
        return True
    inputs, weight = scheme.activation.format, scheme.weight
    if inputs.grid.name.startswith("int") and inputs.grid.bits != 8:
        return False  # readers of its integers know int8
    return inputs.range in ("reach", "ocp") and (inputs.scale is E8M0) == (weight.scale is E8M0)


def parts(scheme: Scheme, shape: tuple[int, int]) -> dict[str, Part]:
    """Suffix of the module's name -> Part, for a weight of this shape [out, in].

    Raises FormatError for what the format cannot hold.
    """
    kind, format = layout(scheme), scheme.weight
    found = _codes(kind, format, shape) | _scales(format, format.groups(*shape))
    if kind == PACKED:
        make = lambda _: torch.tensor(shape, dtype=torch.int64)
        found["weight_shape"] = Part(torch.int64, (2,), make)
        if not format.symmetric:
            found["weight_zero_point"] = _zero_points(format, shape)
    if scheme.activation is not None and not scheme.activation.dynamic:
        found |= _input_scale(scheme.activation.format)
    return found


def _codes(kind: str, format: Format, shape: tuple[int, int]) -> dict[str, Part]:
    (rows, cols), bits = shape, format.grid.bits
    if kind == PACKED:
        words = packed_bytes(cols, bits) // WORD
        return {
            "weight_packed": Part(
                torch.int32, (rows, words), lambda read: read("codes").view(torch.int32)
            )
        }
    if bits < 8:  # in groups that fill whole words: no row is padded
        width = packed_bytes(cols, bits)
        return {"weight_packed": Part(torch.uint8, (rows, width), lambda read: read("codes"))}
    dtype, codes = torch.float8_e4m3fn, lambda read: unpack_bits(read("codes"), 8, cols)
    if kind == INTEGER:
        dtype, make = torch.int8, lambda read: _signed(codes(read), format)
    else:
        make = lambda read: codes(read).view(torch.float8_e4m3fn)
    return {"weight": Part(dtype, shape, make)}


def _scales(format: Format, groups: tuple[int, int]) -> dict[str, Part]:
    if isinstance(format.scale, Format):
        make = lambda read: unpack_bits(read("scale.codes"), 8, groups[1])
        return {
            "weight_scale": Part(
                torch.float8_e4m3fn, groups, lambda read: make(read).view(torch.float8_e4m3fn)
            ),
            "weight_global_scale": Part(
                torch.float32, (1,), lambda read: 1 / read("scale.scale").view(1)
            ),
        }
    if format.scale is E8M0:
        make = lambda read: read("scale").view(torch.uint8)
        return {"weight_scale": Part(torch.uint8, groups, make)}
    assert format.scale is not None, "layout() knows no format without a scale"
    shape = (1,) if (format.group_rows, format.group_size) == (None, None) else groups
    return {"weight_scale": Part(format.scale, shape, lambda read: read("scale").view(shape))}


def _zero_points(format: Format, shape: tuple[int, int]) -> Part:
    groups, bits = format.groups(*shape), format.grid.bits
    words = packed_bytes(shape[0], bits) // WORD
    if words == 1:  # its unpacking takes a single word for a row of another shape
        raise FormatError(
            f"out_features {shape[0]}: the compressed-tensors library cannot read the zero "
            f"points of fewer than {32 // bits + 1} outputs; use a symmetric scheme"
        )
    make = lambda read: read("zero_point").view(torch.int32).T.contiguous()
    return Part(torch.int32, (words, groups[1]), make)


def _input_scale(format: Format) -> dict[str, Part]:
    if isinstance(format.scale, Format):
        make = lambda read: 1 / read("input_scale").view(1)
        return {"input_global_scale": Part(torch.float32, (1,), make)}
    dtype = format.scale
    assert dtype is not None, "inputs have no table"
    return {"input_scale": Part(dtype, (1,), lambda read: read("input_scale").view(1).to(dtype))}


def decode(stored: dict[str, Tensor], scheme: Scheme) -> QTensor:
    """The QTensor behind the tensors of one linear."""
    kind, format = layout(scheme), scheme.weight
    zero_point = None
    if kind == PACKED:
        rows, cols = stored["weight_shape"].tolist()
        codes = unpack_bits(stored["weight_packed"].view(torch.uint8), format.grid.bits, cols)
        if not format.symmetric:
            along_out = stored["weight_zero_point"].T.contiguous().view(torch.uint8)
            zero_point = unpack_bits(along_out, format.grid.bits, rows).T.float().contiguous()
    elif kind == INTEGER:
        codes = (stored["weight"].to(torch.int16) + int(format.grid.middle)).to(torch.uint8)
    elif "weight" in stored:
        codes = stored["weight"].view(torch.uint8)
    else:
        packed = stored["weight_packed"]
        codes = unpack_bits(packed, format.grid.bits, packed.shape[1] * 8 // format.grid.bits)
    scale = _decode_scale(stored, format, codes)
    return QTensor(format=format, codes=codes, scale=scale, zero_point=zero_point)


def _decode_scale(stored: dict[str, Tensor], format: Format, codes: Tensor) -> Tensor | QTensor:
    scale = stored["weight_scale"]
    if isinstance(format.scale, Format):
        whole = 1 / stored["weight_global_scale"].view(1, 1)
        return QTensor(format=format.scale, codes=scale.view(torch.uint8), scale=whole)
    if format.scale is E8M0:
        scale = scale.view(E8M0)
    rows, cols = codes.shape
    return scale.float().view(format.groups(rows, cols))


def decoded_dtype(scheme: Scheme, scale_dtype: torch.dtype) -> torch.dtype:
    """The dtype that the library gives a decoded weight: of the scales, where that is one to
    compute in."""
    whole = scheme.weight.scale is E8M0 or isinstance(scheme.weight.scale, Format)
    return torch.bfloat16 if whole else scale_dtype


def _signed(codes: Tensor, format: Format) -> Tensor:
    return (codes.to(torch.int16) - int(format.grid.middle)).to(torch.int8)
