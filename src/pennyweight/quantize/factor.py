"""The factor of the inverse Hessian that error feedback needs, with damping and column order."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from pennyweight.core import Mapper, NumericalError, Stats

PANEL = 512  # columns factored at a time, and rows of a task: large products, enough tasks to share
LEAF = 256  # rows below which halving further costs more than it saves
LARGEST_DAMP = 1.0  # as large as the mean diagonal itself: beyond it little of the Hessian is left


@dataclass(frozen=True, kw_only=True)
class InverseFactor:
    """upper^T upper = (hessian[order][:, order] + damp * mean diagonal * I)^-1."""

    upper: Float[Tensor, "in in"]
    order: Int64[Tensor, " in"]  # visiting position -> column
    diagonal: Float[Tensor, " in"]  # of the Hessian, in column order
    damp: float  # what it took


def inverse_factor(
    stats: Stats, damp: float, act_order: bool, workers: Mapper, last: Tensor | None = None
) -> InverseFactor:
    """Factor with the least damping of damp, 10 damp, 100 damp, ... up to 1 that succeeds.

    last: mask of columns that are visited after all others.

    A column that saw no input (zero diagonal) gets the mean diagonal and no neighbours: it is
    rounded to nearest. Each damping is tried in float32 and then in float64. Raises NumericalError
    on NaN or Inf, or if the largest damping is not enough.
    """
    if stats.gram is None:
        raise NumericalError("no Hessian was observed; this method needs calibration data")
    diagonal = stats.gram.diagonal() / max(stats.tokens, 1)
    if not bool(diagonal.isfinite().all()):
        raise NumericalError(
            "the Hessian holds NaN or Inf: the inputs of this layer are not finite"
        )
    mean = diagonal.mean().item() or 1.0  # inputs that are all zero: any positive number will do
    columns = torch.arange(len(diagonal))
    order = diagonal.argsort(descending=True, stable=True) if act_order else columns
    if last is not None:
        order = torch.cat([order[~last[order]], order[last[order]]])
    trial = damp
    while True:
        extra = torch.where(diagonal == 0, mean, 0.0) + trial * mean
        for dtype in (torch.float32, torch.float64):
            upper = _factor(stats, order, extra, dtype, workers)
            if upper is not None:
                return InverseFactor(upper=upper, order=order, diagonal=diagonal, damp=trial)
        if trial >= LARGEST_DAMP:
            raise NumericalError(
                f"the Hessian is not positive definite even with damp={trial:g}; "
                "use more, or more varied, calibration samples"
            )
        trial = min(max(10 * trial, 1e-4), LARGEST_DAMP)


def _factor(stats: Stats, order, extra, dtype, workers) -> Float[Tensor, "in in"] | None:
    """With H reversed = L L^T, the reversed inverse of L is the upper factor of the inverse of H.

    In place, because at 11008 columns a matrix is half a gigabyte.
    """
    backwards = order.flip(0)
    assert stats.gram is not None
    matrix = stats.gram[backwards[:, None], backwards].to(dtype).div_(max(stats.tokens, 1))
    matrix.diagonal().add_(extra[backwards])
    if not cholesky_(matrix, workers):
        return None
    invert_lower_(matrix, workers)
    reverse_(matrix)
    return matrix.to(stats.gram.dtype)


def cholesky_(matrix: Float[Tensor, "n n"], workers: Mapper) -> bool:
    """Replace a symmetric matrix by its lower Cholesky factor, in its own memory.

    Panel by panel, right-looking; returns False if it is not positive definite.
    """
    size = len(matrix)
    for start in range(0, size, PANEL):
        stop = min(start + PANEL, size)
        corner, failed = torch.linalg.cholesky_ex(matrix[start:stop, start:stop])
        if failed or not bool(corner.diagonal().isfinite().all()):
            return False
        matrix[start:stop, start:stop] = corner
        panel, rest = matrix[stop:, start:stop], matrix[stop:, stop:]
        tasks = range(0, size - stop, PANEL)
        _solve_panel(panel, corner, tasks, workers)
        _update_rest(panel, rest, tasks, workers)
    matrix.tril_()
    return True


def _solve_panel(panel: Tensor, corner: Tensor, tasks: range, workers: Mapper) -> None:
    def solve(first: int) -> None:
        rows = panel[first : first + PANEL]
        rows.copy_(torch.linalg.solve_triangular(corner.T, rows, upper=True, left=False))

    workers.map(solve, tasks)


def _update_rest(panel: Tensor, rest: Tensor, tasks: range, workers: Mapper) -> None:
    def update(first: int) -> None:
        last = first + PANEL
        rest[first:last, :last].addmm_(panel[first:last], panel[:last].T, alpha=-1)

    workers.map(update, reversed(tasks))  # the longest first, so that no thread is left with it


def reverse_(matrix: Float[Tensor, "n n"]) -> None:
    """Reverse the order of rows and of columns, a panel of rows from either end at a time."""
    size = len(matrix)
    for top in range(0, size // 2, PANEL):
        stop = min(top + PANEL, size // 2)
        first = matrix[top:stop].flip(0, 1)
        matrix[top:stop] = matrix[size - stop : size - top].flip(0, 1)
        matrix[size - stop : size - top] = first
    if size % 2:
        matrix[size // 2] = matrix[size // 2].flip(0)


def invert_lower_(lower: Float[Tensor, "n n"], workers: Mapper) -> None:
    """Replace a lower triangular matrix by its inverse, in its own memory.

    By halves: [[A, 0], [B, C]]^-1 = [[A^-1, 0], [-C^-1 B A^-1, C^-1]]. A third of the operations of
    solving against the identity, nearly all of them in large matrix products.
    """
    size = len(lower)
    if size <= LEAF:
        identity = torch.eye(size, dtype=lower.dtype)
        lower.copy_(torch.linalg.solve_triangular(lower, identity, upper=False))
        return
    half = size // 2
    first, corner, last = lower[:half, :half], lower[half:, :half], lower[half:, half:]
    invert_lower_(first, workers)
    invert_lower_(last, workers)
    product = torch.empty_like(corner)

    # Both factors are triangular; their tasks leave out the half of the products that is zero.
    def right(col: int) -> None:
        stop = min(col + PANEL, half)
        torch.mm(corner[:, col:], first[col:, col:stop], out=product[:, col:stop])

    def left(row: int) -> None:
        stop = min(row + PANEL, len(corner))
        torch.mm(last[row:stop, :stop], product[:stop], out=corner[row:stop])

    workers.map(right, range(0, half, PANEL))
    workers.map(left, reversed(range(0, len(corner), PANEL)))
    corner.neg_()
