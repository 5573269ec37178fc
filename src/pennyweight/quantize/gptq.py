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
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
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
from pennyweight.core.finite import is_finite
from pennyweight.formats.clipping import fractions, search_range
from pennyweight.formats.dual_grained import code_range
from pennyweight.formats.rounding import fit, require_columns
from pennyweight.quantize.base import quantizer
from pennyweight.quantize.factor import InverseFactor, inverse_factor
from pennyweight.quantize.kept import Kept

LEAF = 16  # columns updated one by one; wider leaves do more work outside matrix products


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
    keeps: ClassVar[bool] = True

    def check_format(self, format: Format) -> None:
        require_columns(format)

    def __call__(self, weight: Float[Tensor, "out in"], format: Format, stats: Stats) -> Quantized:
        """Raises NumericalError on NaN or Inf, or if no damping up to 1 makes the Hessian positive
        definite."""
        return self.solve(weight, format, stats)

    def solve(
        self,
        weight: Float[Tensor, "out in"],
        format: Format,
        stats: Stats,
        last: Bool[Tensor, " in"] | None = None,
        threshold: float | None = None,
    ) -> Quantized:
        """As a call; the columns in `last` are visited after all others.

        A weight in `stats.keep` takes part in the error feedback, but is rounded only to the dtype
        that it is kept in, and no range is fitted to it. With a threshold, so is a weight whose
        squared error, in units of what later columns cannot make up for, is above it.
        """
        if not is_finite(weight):
            raise NumericalError("weight holds NaN or Inf, which no code can stand for")
        self.check_format(format)
        groups = format.groups(*weight.shape)
        factor, keep = self.factor(stats, Serial(), last), stats.keep
        # A scale that belongs to more than its own group cannot wait until the columns arrive.
        in_order = format.group_rows == 1 and not isinstance(format.scale, Format)
        early = self.act_order or not in_order or isinstance(format.zero_point, Format)
        early = early or last is not None
        ranged = weight.float() if keep is None else weight.float().masked_fill(keep, 0)
        solver = _Solver(
            columns=weight.float().T[factor.order].contiguous(),
            factor=factor,
            format=format,
            group_size=weight.shape[1] // groups[1],
            fit_range=self._fit_range,
            fitted=self._fit_range(ranged, format, factor.diagonal) if early else None,
            kept=None if keep is None else Kept.of(keep, factor.order, format, threshold),
        )
        rounded = solver.run(groups)
        corrections = () if solver.kept is None else (solver.kept.sparse(factor.order),)
        return Quantized(weight=rounded, corrections=corrections, notes=self._notes(factor.damp))

    def _notes(self, damp: float) -> dict[str, float | str]:
        if damp == self.damp:
            return {"damp": damp}
        why = f"the Hessian is nearly singular; damp was raised from {self.damp:g} to {damp:g}"
        return {"damp": damp, "warning": why}

    def prepare(self, stats: Stats, workers: Mapper) -> None:
        self.factor(stats, workers)

    def factor(self, stats: Stats, workers: Mapper, last: Tensor | None = None) -> InverseFactor:
        """The factor of these inputs, made once; `last` as in `solve`."""
        at_the_end = None if last is None else tuple(last.nonzero()[:, 0].tolist())
        return stats.derive(
            ("inverse factor", self.damp, self.act_order, at_the_end),
            lambda: inverse_factor(stats, self.damp, self.act_order, workers, last),
        )

    def _fit_range(self, weight: Tensor, format: Format, diagonal: Tensor):
        if self.range == "minmax":
            return fit(weight, format)
        trials = fractions(0.5, self.steps)
        return search_range(weight, format, fractions=trials, importance=diagonal)


quantizer("gptq")(GPTQ)  # and not above it, where the type would be lost on those who use it


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
    kept: Kept | None = None  # weights that are not rounded to the grid
    limits: list[Tensor] | None = None  # least and largest code [groups, out], if they are bounded

    def run(self, groups: tuple[int, int]) -> QTensor:
        count, rows = self.columns.shape
        self.codes = torch.empty((count, rows), dtype=torch.uint8)
        if self.fitted:
            expand = lambda part: plain(part).repeat_interleave(rows // groups[0], 0).T
            self.scales = list(expand(self.fitted[0]).contiguous())
            if self.fitted[1] is not None:
                self.zero_points = list(expand(self.fitted[1]).contiguous())
            limits = code_range(self.format, *self.fitted)
            self.limits = limits and [limit.T.contiguous() for limit in limits]
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
        group = self.columns[start:stop]
        if self.kept is not None:
            group = group.masked_fill(self.kept.keep[start:stop], 0)
        group = group.T.contiguous()
        one = replace(self.format, group_size=None)
        scale, zero_point = self.fit_range(group, one, self.factor.diagonal[start:stop])
        self.scales.append(scale[:, 0].contiguous())
        if zero_point is not None:
            self.zero_points.append(zero_point[:, 0].contiguous())

    def round_leaf(self, start: int, stop: int) -> None:
        """Round one column at a time, each seeing the errors of those before it in the leaf."""
        grid, upper = self.format.grid, self.factor.upper[start:stop, start:stop]
        columns, pivots = self.columns[start:stop], upper.diagonal().tolist()
        groups = (self.factor.order[start:stop] // self.group_size).tolist()
        nearest = torch.empty_like(columns)
        for j, (column, value, group) in enumerate(zip(columns, nearest, groups, strict=True)):
            scale = self.scales[group]
            zero = self.zero_points[group] if self.zero_points else grid.middle
            torch.div(column, scale, out=value).add_(zero)
            if self.limits:
                value.clamp_(self.limits[0][group], self.limits[1][group])
            rounded = (grid.nearest_(value) - zero).mul_(scale)
            if self.kept is not None:
                rounded = self.kept.visit(start + j, column, rounded, upper[j, j])
            error = column.sub_(rounded).div_(pivots[j])
            if start + j + 1 < stop:
                columns[j + 1 :].addr_(upper[j, j + 1 :], error, alpha=-1)
        self.codes[start:stop] = grid.encode(nearest)  # at once: a value of the grid is its code
