"""A QTensor as named tensors of bytes, and back. `unpack(pack(q))` equals q bit for bit."""

from math import prod

import torch
from torch import Tensor

from pennyweight.core import Format, QTensor
from pennyweight.formats.bits import pack_bits, packed_bytes, unpack_bits


def pack(q: QTensor) -> dict[str, Tensor]:
    """`codes`, `scale`, `zero_point`, `table`, of which a format need not have all; a quantized
    scale becomes `scale.codes`, `scale.scale`, ..."""
    format = q.format
    stored = {"codes": pack_bits(q.codes, format.grid.bits)}
    if q.table is not None and format.table is not None:
        stored["table"] = q.table.to(format.table)
    if q.scale is not None and format.scale is not None:
        stored |= _pack_part("scale", q.scale, format.scale, format)
    if q.zero_point is not None and format.zero_point is not None:
        stored |= _pack_part("zero_point", q.zero_point, format.zero_point, format)
    return stored


def unpack(stored: dict[str, Tensor], format: Format, shape: tuple[int, int]) -> QTensor:
    """The QTensor of `shape` whose `pack` is `stored`."""
    groups = format.groups(*shape)
    return QTensor(
        format=format,
        codes=unpack_bits(stored["codes"], format.grid.bits, shape[1] // format.dim),
        scale=_unpack_part("scale", stored, format.scale, format, groups),
        zero_point=_unpack_part("zero_point", stored, format.zero_point, format, groups),
        table=None if format.table is None else stored["table"].float(),
    )


def parts_of(
    format: Format, shape: tuple[int, int]
) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Name -> dtype and shape of everything that `pack` stores for a tensor of this shape."""
    groups, bits = format.groups(*shape), format.grid.bits
    codes = (shape[0], packed_bytes(shape[1] // format.dim, bits))
    found: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {"codes": (torch.uint8, codes)}
    if format.table is not None:
        found["table"] = (format.table, (shape[0], 2**bits))
    for name, kind in (("scale", format.scale), ("zero_point", format.zero_point)):
        if isinstance(kind, Format):
            found |= {f"{name}.{key}": part for key, part in parts_of(kind, groups).items()}
        elif kind is torch.uint8:
            found[name] = (torch.uint8, (groups[1], packed_bytes(groups[0], bits)))
        elif kind is not None:
            found[name] = (kind, groups)
    return found


def stored_bytes(format: Format, shape: tuple[int, int]) -> int:
    """Bytes of everything that `pack` stores for a tensor of this shape, without making one."""
    return sum(prod(size) * dtype.itemsize for dtype, size in parts_of(format, shape).values())


def bits_per_weight(format: Format, shape: tuple[int, int]) -> float:
    return 8 * stored_bytes(format, shape) / prod(shape)


def _pack_part(name: str, part, kind, format: Format) -> dict[str, Tensor]:
    if isinstance(part, QTensor):
        return {f"{name}.{key}": tensor for key, tensor in pack(part).items()}
    if kind is torch.uint8:
        # Along the outputs, as in compressed-tensors: a row has few groups and would be padded.
        return {name: pack_bits(part.to(torch.uint8).T.contiguous(), format.grid.bits)}
    return {name: part.to(kind)}


def _unpack_part(name: str, stored: dict[str, Tensor], kind, format: Format, groups):
    if kind is None:
        return None
    if isinstance(kind, Format):
        inner = {
            key.removeprefix(f"{name}."): tensor
            for key, tensor in stored.items()
            if key.startswith(f"{name}.")
        }
        return unpack(inner, kind, groups)
    if kind is torch.uint8:
        return unpack_bits(stored[name], format.grid.bits, groups[0]).T.float().contiguous()
    return stored[name].float()
