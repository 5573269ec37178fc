"""The matrix of low rank that undoes most of a rounding error, for any measure of the inputs.

Of all matrices X of rank k the one with the least tr((E - X) R (E - X)^T) is U U^T E, where the
columns of U are the first k eigenvectors of E R E^T. E is the error [out, in] and R measures the
inputs [in, in]: the identity gives LoRC, a diagonal LQER or QERA's approximation, E[x x^T] QERA's
exact solution (Zhang et al. 2024, arXiv:2410.06040, theorem 1, which says the same with the square
root of R and a singular value decomposition; its inverse, which does not exist where a channel saw
no input, is not needed here).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pennyweight.core import (
    Format,
    FormatError,
    LowRank,
    Mapper,
    NumericalError,
    QTensor,
    Quantized,
)
from pennyweight.formats import GRIDS
from pennyweight.formats.rounding import round_to_nearest
from pennyweight.formats.storage import stored_bytes
from pennyweight.quantize.kept import kept_dtype

SPARE = 16  # directions sought beyond the rank: they decide how fast the others are found
# Times E R E^T is applied. On random errors of 2048 x 5632 at rank 32, whose spectrum is as flat as
# can be, it leaves 1e-4 more than the optimum; with correlated inputs less than 1e-9 more.
DEPTH = 8
TASK = 512  # rows of a product per task

Factors = Literal["auto", "float16", "bfloat16", "float32", "int8"]
Measure = Callable[[Tensor], Tensor]  # R times a matrix [in, k], in float64


def diagonal(energy: Float[Tensor, " in"]) -> Measure:
    """R = diag(energy)."""
    checked = _finite(energy).double()[:, None]
    return lambda block: checked * block


def full(gram: Float[Tensor, "in in"], workers: Mapper) -> Measure:
    """R = gram."""
    _finite(gram.diagonal())
    return lambda block: product(gram, block, workers)


def _finite(energy: Tensor) -> Tensor:
    if not bool(energy.isfinite().all()):
        raise NumericalError("the inputs of this layer are not finite")
    return energy


def correct(
    weight: Float[Tensor, "out in"],
    quantized: Quantized,
    measure: Measure,
    rank: int,
    dtype: Factors,
    workers: Mapper,
) -> Quantized:
    """`quantized` and the factors that undo most of its error, in that dtype ("auto": the dtype of
    the checkpoint).

    Raises FormatError if the weight has no such rank.
    """
    rows, cols = weight.shape
    if not 1 <= rank <= min(rows, cols):
        raise FormatError(
            f"a correction of rank {rank} for a weight of {rows} x {cols}; use rank 1 to "
            f"{min(rows, cols)}, or a rule for this tensor"
        )
    kind = factor_format(dtype, quantized.weight.format)
    left, right = factors(weight.float() - quantized.dequantize(), measure, rank, workers)
    part = LowRank(left=stored(left, kind), right=stored(right, kind))
    return replace(quantized, corrections=(*quantized.corrections, part))


def factor_bytes(shape: tuple[int, int], rank: int, dtype: Factors, format: Format) -> int:
    """Of both factors, for a weight of this shape in this format."""
    kind = factor_format(dtype, format)
    shapes = ((shape[0], rank), (rank, shape[1]))
    if isinstance(kind, Format):
        return sum(stored_bytes(kind, each) for each in shapes)
    return sum(prod(each) * kind.itemsize for each in shapes)


def factor_format(dtype: Factors, format: Format) -> torch.dtype | Format:
    """What the factors of a weight in `format` are stored in: int8 has a float16 scale per row."""
    if dtype == "auto":
        return kept_dtype(format)
    if dtype == "int8":
        return Format(grid=GRIDS["int8"], scale=torch.float16)
    return getattr(torch, dtype)


def stored(factor: Float[Tensor, "rows cols"], kind: torch.dtype | Format) -> Tensor | QTensor:
    return round_to_nearest(factor, kind) if isinstance(kind, Format) else factor.to(kind)


def factors(
    error: Float[Tensor, "out in"], measure: Measure, rank: int, workers: Mapper
) -> tuple[Float[Tensor, "out rank"], Float[Tensor, "rank in"]]:
    """U s and s^-1 U^T E, where s are the roots of the lengths of the rows of U^T E: both factors
    are then of one size, which suits narrow dtypes."""
    directions = leading(error, measure, rank, workers)
    right = product(error.T, directions, workers).T
    size = right.norm(dim=1).sqrt()
    size = size.where(size > 0, 1.0)
    return (directions * size).float(), (right / size[:, None]).float().contiguous()


def leading(
    error: Float[Tensor, "out in"], measure: Measure, rank: int, workers: Mapper
) -> Float[Tensor, "out rank"]:
    """The first eigenvectors of E R E^T, in float64: exact for small matrices, and of large ones
    the best in a Krylov space."""
    rows, cols = error.shape
    apply = lambda block: product(error, measure(product(error.T, block, workers)), workers)
    width = rank + SPARE
    if width * DEPTH < min(rows, cols):
        basis, images = krylov(apply, rows, width)
    else:  # all that there is: a Krylov space could not be larger
        basis = torch.eye(rows, dtype=torch.float64)
        if cols < rows:
            basis = torch.linalg.qr(error.double()).Q
        images = apply(basis)
    inner = basis.T @ images
    _, vectors = torch.linalg.eigh((inner + inner.T) / 2)
    return basis @ vectors.flip(1)[:, :rank]


def krylov(
    apply: Measure, rows: int, width: int
) -> tuple[Float[Tensor, "rows space"], Float[Tensor, "rows space"]]:
    """An orthonormal basis of a random block (seed 0) and what comes of applying a symmetric
    operator to it again and again; and what comes of applying it to the basis."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    basis, images = torch.empty(rows, 0, dtype=torch.float64), []
    block = torch.linalg.qr(start).Q
    for _ in range(DEPTH):
        basis = torch.cat([basis, block], 1)
        images.append(apply(block))
        block = images[-1]
        for _ in range(2):  # twice is enough: what the first pass leaves is rounding error
            block = torch.linalg.qr(block - basis @ (basis.T @ block)).Q
    return basis, torch.cat(images, 1)


def product(
    left: Float[Tensor, "rows inner"], right: Float[Tensor, "inner cols"], workers: Mapper
) -> Float[Tensor, "rows cols"]:
    """left @ right in float64, cut into tasks by the shape alone."""
    task = lambda start: left[start : start + TASK].double() @ right
    return torch.cat(workers.map(task, range(0, len(left), TASK)))
