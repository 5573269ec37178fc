"""Corrections as named tensors of bytes, and back.

    sparse.values              the kept weights, row by row (column by column for whole columns)
    sparse.columns             whole columns: their numbers, int32
    sparse.starts, .indices    CSR: where each row starts, int32 [out + 1]; columns, int16 or int32
    sparse.mask                bitmap, 1 bit a weight, each row padded to 4 bytes
    low_rank.left, .right      as they are; in 8 bits .left.codes, .left.scale, .right.codes, ...:
                               int8 codes and a float scale per row

Of the three ways to say where the kept weights are, the one that takes the fewest bytes is stored.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from pennyweight.core import Correction, Format, FormatError, LowRank, QTensor, Sparse
from pennyweight.formats.base import GRIDS
from pennyweight.formats.bits import pack_bits, packed_bytes, unpack_bits
from pennyweight.formats.storage import pack, unpack

NARROW = 2**15  # columns that an int16 can number


def pack_corrections(corrections: Sequence[Correction]) -> dict[str, Tensor]:
    """Raises ValueError on two corrections of one kind: nothing makes them, nothing tells them
    apart."""
    stored: dict[str, Tensor] = {}
    for one in corrections:
        parts = pack_sparse(one) if isinstance(one, Sparse) else _pack_low_rank(one)
        if stored.keys() & parts.keys():
            raise ValueError(f"a weight cannot carry two corrections of kind {type(one).__name__}")
        stored |= parts
    return stored


def unpack_corrections(stored: dict[str, Tensor], shape: tuple[int, int]) -> tuple[Correction, ...]:
    """Kept weights replace codes, so they come first; low rank is added to the result.

    Raises FormatError if there are more or fewer kept weights than places for them.
    """
    found: list[Correction] = []
    if "sparse.values" in stored:
        found.append(unpack_sparse(stored, shape))
    if "low_rank.left" in stored:
        found.append(LowRank(left=stored["low_rank.left"], right=stored["low_rank.right"]))
    elif "low_rank.left.codes" in stored:
        rank = len(stored["low_rank.right.codes"])
        left = _unpack_factor("low_rank.left", stored, (shape[0], rank))
        right = _unpack_factor("low_rank.right", stored, (rank, shape[1]))
        found.append(LowRank(left=left, right=right))
    return tuple(found)


def pack_sparse(sparse: Sparse) -> dict[str, Tensor]:
    rows, cols = sparse.keep.shape
    columns = sparse.keep.any(0)
    if bool(sparse.keep[:, columns].all()):
        values = sparse.values.view(rows, int(columns.sum())).T.contiguous().view(-1)
        where = {"sparse.columns": columns.nonzero()[:, 0].int()}
        return {"sparse.values": values} | where
    if csr_bytes(rows, cols, len(sparse.values)) <= rows * packed_bytes(cols, 1):
        where = _csr(sparse.keep)
    else:
        where = {"sparse.mask": pack_bits(sparse.keep.to(torch.uint8), 1)}
    return {"sparse.values": sparse.values} | where


def unpack_sparse(stored: dict[str, Tensor], shape: tuple[int, int]) -> Sparse:
    values, keep = stored["sparse.values"], torch.zeros(shape, dtype=torch.bool)
    if "sparse.columns" in stored:
        columns = stored["sparse.columns"].long()
        keep[:, columns] = True
        values = values.view(len(columns), shape[0]).T.contiguous().view(-1)
    elif "sparse.mask" in stored:
        keep = unpack_bits(stored["sparse.mask"], 1, shape[1]).bool()
    else:
        counts = stored["sparse.starts"].diff()
        row = torch.arange(shape[0]).repeat_interleave(counts)
        keep[row, stored["sparse.indices"].long()] = True
    if int(keep.sum()) != len(values):
        raise FormatError(f"{len(values)} kept weights are stored for {int(keep.sum())} places")
    return Sparse(keep=keep, values=values)


def sparse_bytes(rows: int, cols: int, kept: int, item: int) -> int:
    """Bytes of `kept` weights of `item` bytes each in no particular pattern."""
    if not kept:
        return 0
    where = min(csr_bytes(rows, cols, kept), rows * packed_bytes(cols, 1))
    return kept * item + where


def csr_bytes(rows: int, cols: int, kept: int) -> int:
    """Bytes of the row starts and column numbers."""
    return 4 * (rows + 1) + kept * (2 if cols <= NARROW else 4)


def _csr(keep: Bool[Tensor, "rows cols"]) -> dict[str, Tensor]:
    counts = keep.sum(1)
    starts = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int()
    narrow = torch.int16 if keep.shape[1] <= NARROW else torch.int32
    return {"sparse.starts": starts, "sparse.indices": keep.nonzero()[:, 1].to(narrow)}


def _pack_low_rank(one: LowRank) -> dict[str, Tensor]:
    return _pack_factor("low_rank.left", one.left) | _pack_factor("low_rank.right", one.right)


def _pack_factor(name: str, factor: Tensor | QTensor) -> dict[str, Tensor]:
    if isinstance(factor, Tensor):
        return {name: factor}
    scale = factor.format.scale
    if not isinstance(scale, torch.dtype) or factor.format != _factor_format(scale):
        raise ValueError(f"a factor in {factor.format.name}: the layout says int8 with row scales")
    return {f"{name}.{part}": tensor for part, tensor in pack(factor).items()}


def _unpack_factor(name: str, stored: dict[str, Tensor], shape: tuple[int, int]) -> QTensor:
    parts = {part: stored[f"{name}.{part}"] for part in ("codes", "scale")}
    return unpack(parts, _factor_format(parts["scale"].dtype), shape)


def _factor_format(scale: torch.dtype) -> Format:
    return Format(grid=GRIDS["int8"], scale=scale)
