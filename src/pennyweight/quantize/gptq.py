"""GPTQ: round column by column, and push each column's error onto the columns not yet rounded.

Frantar et al. 2022, https://arxiv.org/abs/2210.17323

Two things differ from the authors' code. The lazy update is a recursion over halves instead of
blocks of 128 columns: the error of a half reaches the other half as one matrix product, the
recursion never cuts through a group, and so the scale of a group always sees weights that have
received every earlier correction (in the authors' code that depends on the block size). And the
factor of the inverse Hessian comes from one Cholesky of the reversed matrix and one triangular
inverse, half the work of inverting first.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pennyweight.core import (
    Format,
    Mapper,
    NumericalError,
    QTensor,
    Quantized,
    Serial,
    Stats,
    plain,
)
from pennyweight.formats.clipping import fractions, search_range
from pennyweight.formats.rounding import fit
from pennyweight.quantize.base import quantizer
from pennyweight.quantize.factor import InverseFactor, inverse_factor

LEAF = 16  # columns updated one by one; wider leaves do more work outside matrix products


@quantizer("gptq")
@dataclass(frozen=True, kw_only=True)
class GPTQ:
    """Second-order rounding with error feedback."""

    damp: float = (
        0.01  # fraction of the mean Hessian diagonal added to it; raised tenfold if it fails
    )
    act_order: bool = True  # visit columns by decreasing Hessian diagonal; groups keep their place
    range: Literal["minmax", "mse"] = "mse"  # mse: clip each group where its weighted error falls
    steps: int = 20  # fractions of the full range that `range = "mse"` tries, from 0.5 up
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})
    source: ClassVar[str] = "Frantar et al. 2022, arXiv:2210.17323"

    def __call__(self, weight: Float[Tensor, "out in"], format: Format, stats: Stats) -> Quantized:
        """Raises NumericalError on NaN or Inf, or if no damping up to 1 makes the Hessian positive
        definite."""
        if not bool(weight.isfinite().all()):
            raise NumericalError("weight holds NaN or Inf, which no code can stand for")
        groups = format.groups(*weight.shape)
        factor = self._factor(stats, Serial())
        # A scale that belongs to more than its own group cannot wait until the columns arrive.
        in_order = format.group_rows == 1 and not isinstance(format.scale, Format)
        early = self.act_order or not in_order or isinstance(format.zero_point, Format)
        solver = _Solver(
            columns=weight.float().T[factor.order].contiguous(),
            factor=factor,
            format=format,
            group_size=weight.shape[1] // groups[1],
            fit_range=self._fit_range,
            fitted=self._fit_range(weight.float(), format, factor.diagonal) if early else None,
        )
        return Quantized(weight=solver.run(groups), notes=self._notes(factor.damp))

    def _notes(self, damp: float) -> dict[str, float | str]:
        if damp == self.damp:
            return {"damp": damp}
        why = f"the Hessian is nearly singular; damp was raised from {self.damp:g} to {damp:g}"
        return {"damp": damp, "warning": why}

    def prepare(self, stats: Stats, workers: Mapper) -> None:
        self._factor(stats, workers)

    def _factor(self, stats: Stats, workers: Mapper) -> InverseFactor:
        return stats.derive(
            ("inverse factor", self.damp, self.act_order),
            lambda: inverse_factor(stats, self.damp, self.act_order, workers),
        )

    def _fit_range(self, weight: Tensor, format: Format, diagonal: Tensor):
        if self.range == "minmax":
            return fit(weight, format)
        trials = fractions(0.5, self.steps)
        return search_range(weight, format, fractions=trials, importance=diagonal)


@dataclass(kw_only=True)
class _Solver:
    """W^T, one input column per row, in visiting order. A visited row holds its error instead."""

    columns: Float[Tensor, "in out"]
    factor: InverseFactor
    format: Format
    group_size: int
    fit_range: Callable[[Tensor, Format, Tensor], tuple]
    fitted: (
        tuple | None
    )  # (scale, zero_point) of all groups, if they are chosen before the first column
    scales: list = field(default_factory=list)
    zero_points: list = field(default_factory=list)

    def run(self, groups: tuple[int, int]) -> QTensor:
        count, rows = self.columns.shape
        self.codes = torch.empty((count, rows), dtype=torch.uint8)
        if self.fitted:
            expand = lambda part: (
                plain(part).expand(rows, -1).T if groups[0] == 1 else plain(part).T
            )
            self.scales = list(expand(self.fitted[0]).contiguous())
            if self.fitted[1] is not None:
                self.zero_points = list(expand(self.fitted[1]).contiguous())
        self.visit(0, count)
        codes = torch.empty_like(self.codes)
        codes[self.factor.order] = self.codes
        scale, zero_point = self.fitted or (
            torch.stack(self.scales, 1),
            torch.stack(self.zero_points, 1) if self.zero_points else None,
        )
        return QTensor(
            format=self.format, codes=codes.T.contiguous(), scale=scale, zero_point=zero_point
        )

    def visit(self, start: int, stop: int) -> None:
        """Round columns start .. stop - 1, which have received the errors of all columns before."""
        width = stop - start
        if not self.fitted and width <= self.group_size and start % self.group_size == 0:
            self.fit_group(start)
        if width <= LEAF and (self.fitted or width <= self.group_size):
            return self.round_leaf(start, stop)
        step = 1 if self.fitted or width <= self.group_size else self.group_size
        middle = start + max(width // (2 * step), 1) * step
        self.visit(start, middle)
        inverse = self.factor.upper[start:middle, middle:stop]
        self.columns[middle:stop].addmm_(inverse.T, self.columns[start:middle], alpha=-1)
        self.visit(middle, stop)

    def fit_group(self, start: int) -> None:
        stop = start + self.group_size
        if len(self.scales) > start // self.group_size:
            return  # a first half of the group, whose scale was chosen when the group was entered
        group = self.columns[start:stop].T.contiguous()
        one = Format(
            grid=self.format.grid, scale=self.format.scale, zero_point=self.format.zero_point
        )
        scale, zero_point = self.fit_range(group, one, self.factor.diagonal[start:stop])
        self.scales.append(scale[:, 0].contiguous())
        if zero_point is not None:
            self.zero_points.append(zero_point[:, 0].contiguous())

    def round_leaf(self, start: int, stop: int) -> None:
        """Round one column at a time, each seeing the errors of those before it in the leaf."""
        grid, upper, columns = self.format.grid, self.factor.upper, self.columns
        for j in range(start, stop):
            group = int(self.factor.order[j]) // self.group_size
            scale = self.scales[group]
            zero = self.zero_points[group] if self.zero_points else grid.middle
            code = grid.encode(columns[j] / scale + zero)
            rounded = (grid.decode(code) - zero) * scale
            error = columns[j].sub_(rounded).div_(upper[j, j])
            self.codes[j] = code
            if j + 1 < stop:
                columns[j + 1 : stop].addr_(upper[j, j + 1 : stop], error, alpha=-1)
