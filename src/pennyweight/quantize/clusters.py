"""Weighted k-means of the weights of each row: on a line, where sums of a run are differences.

Each row is sorted once and its weight, weighted sum and weighted square sum are accumulated, so
that the mean and the loss of any run of values cost two look-ups. Two starts are improved by
Lloyd's steps: even steps over the range, and the exact optimum (by dynamic programming) of cutting
the row between a limited number of cells, which is the exact optimum of the row if it has no more
values than that. The best table, after rounding it to what is stored, is kept; even steps as they
are compete too, so that the result is never worse than they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from pennyweight.core import Format, NumericalError, QTensor
from pennyweight.formats.table import require_table, stored_table, tabulate, uniform_table

ROWS = 64  # solved at once: bounds the scratch, and rows are independent
CELLS = 128  # half of equally many values, half of equal width
STEPS = 50  # of Lloyd, at most


def cluster(
    weight: Float[Tensor, "rows cols"],
    importance: Float[Tensor, "rows cols"],
    format: Format,
    keep_zeros: bool = False,
) -> QTensor:
    """Codes and tables of little sum of importance * (weight - value)^2 in each row.

    A row without importance is treated as if all of it mattered alike. keep_zeros: rows that hold
    zeros have a value of exactly zero. Raises NumericalError on NaN or Inf, and on an importance
    that is negative, FormatError for a format without tables.
    """
    require_table(format)
    format.groups(*weight.shape)
    if not bool(weight.isfinite().all()):
        raise NumericalError("weight holds NaN or Inf, which no code can stand for")
    if not bool((importance.isfinite() & (importance >= 0)).all()):
        raise NumericalError("the importance of a weight is NaN, infinite or negative")
    tables = [
        _tables(part, mass, format, keep_zeros)
        for part, mass in zip(weight.split(ROWS), importance.split(ROWS), strict=True)
    ]
    return tabulate(weight, torch.cat(tables), format)


def _tables(
    weight: Tensor, importance: Tensor, format: Format, keep_zeros: bool
) -> Float[Tensor, "rows values"]:
    even, line = uniform_table(weight, format), Line.of(weight, importance)
    pin = (weight == 0).any(1) & keep_zeros
    starts = [even.double(), line.optimum(2**format.grid.bits, CELLS)]
    tables = [even] + [line.improve(start, pin, STEPS).float() for start in starts]
    stored = torch.stack([stored_table(table, format) for table in tables])
    losses = torch.stack([line.loss(table.double()) for table in stored])
    return stored[losses.argmin(0), torch.arange(len(weight))]


@dataclass(frozen=True)
class Line:
    """Rows in ascending order, and their sums up to each place."""

    values: Float[Tensor, "rows cols"]
    sums: tuple[Tensor, Tensor, Tensor]  # [rows, cols + 1]: of importance * value^0, ^1, ^2

    @classmethod
    def of(cls, weight: Tensor, importance: Tensor) -> Line:
        values, order = weight.double().sort(dim=1, stable=True)
        mass = importance.double()
        mass = mass.where(mass.amax(1, keepdim=True) > 0, 1.0).gather(1, order)
        mass = mass / mass.amax(1, keepdim=True)  # squares of small gradients are tiny
        total = lambda part: torch.nn.functional.pad(part.cumsum(1), (1, 0))
        return cls(values, (total(mass), total(mass * values), total(mass * values**2)))

    def cut(self, table: Float[Tensor, "rows values"]) -> Int64[Tensor, "rows edges"]:
        """Where the values nearest to one entry end and those of the next begin, ends included."""
        inner = torch.searchsorted(self.values, (table[:, 1:] + table[:, :-1]) / 2)
        return torch.nn.functional.pad(
            torch.nn.functional.pad(inner, (1, 0)), (0, 1), value=self.values.shape[1]
        )

    def loss(self, table: Float[Tensor, "rows values"]) -> Float[Tensor, " rows"]:
        """Weighted squared error of the nearest entries, up to a factor of each row."""
        mass, first, second = self._runs(self.cut(table))
        return (second - 2 * table * first + table**2 * mass).sum(1)

    def improve(
        self, table: Float[Tensor, "rows values"], pin: Bool[Tensor, " rows"], steps: int
    ) -> Float[Tensor, "rows values"]:
        """Lloyd's steps: to the means of the nearest values, and again. In rows of `pin` the entry
        nearest to zero is zero."""
        entry = torch.arange(table.shape[1]) == table.abs().argmin(1, keepdim=True)
        pinned = pin[:, None] & entry
        table, edges = table.where(~pinned, 0.0), None
        for _ in range(steps):
            before, edges = edges, self.cut(table)
            if before is not None and torch.equal(before, edges):
                break
            table = self._means(edges, table).where(~pinned, 0.0)
        return table

    def optimum(self, count: int, cells: int) -> Float[Tensor, "rows values"]:
        """The means of the best `count` runs that begin and end where cells do."""
        ends = self._cells(cells)
        chosen = best_cuts(self._cost(ends), count)
        edges = ends.gather(1, chosen)
        at = edges[:, :-1].clamp(max=self.values.shape[1] - 1)
        return self._means(edges, self.values.gather(1, at))

    def _means(self, edges: Tensor, empty: Tensor) -> Float[Tensor, "rows values"]:
        """Of the runs between edges; `empty` where there is nothing of weight between them."""
        mass, first, _ = self._runs(edges)
        last = self.values.shape[1] - 1
        low, high = edges[:, :-1].clamp(max=last), (edges[:, 1:] - 1).clamp(min=0)
        # What is left of a tiny mass beside a large one is rounding error: stay within the run.
        mean = (first / mass).clamp(self.values.gather(1, low), self.values.gather(1, high))
        return mean.where((mass > 0) & (edges[:, 1:] > edges[:, :-1]), empty)

    def _runs(self, edges: Tensor) -> list[Tensor]:
        return [total.gather(1, edges).diff(dim=1) for total in self.sums]

    def _cells(self, cells: int) -> Int64[Tensor, "rows ends"]:
        rows, count = self.values.shape
        if count <= cells:
            return torch.arange(count + 1).expand(rows, -1)
        share = torch.linspace(0, 1, cells // 2 + 1, dtype=torch.float64)
        low, high = self.values[:, :1], self.values[:, -1:]
        by_width = torch.searchsorted(self.values, low + (high - low) * share[1:-1])
        by_count = (share * count).round().long().expand(rows, -1)
        return torch.cat([by_count, by_width], 1).sort(1).values

    def _cost(self, ends: Tensor) -> Float[Tensor, "rows ends ends"]:
        """Loss of the run from each end (axis 1) to each later one (axis 2) about its mean."""
        totals = [total.gather(1, ends) for total in self.sums]
        mass, first, second = (total[:, None, :] - total[:, :, None] for total in totals)
        cost = (second - first.square_() / mass.clamp_(min=1e-300)).clamp_(min=0)
        backwards = torch.ones(cost.shape[1:], dtype=torch.bool).tril(-1)
        return cost.masked_fill_(backwards, torch.inf)


def best_cuts(cost: Float[Tensor, "rows ends ends"], count: int) -> Int64[Tensor, "rows edges"]:
    """The `count` + 1 ends, first and last included, between which the costs add up to the least.

    Dynamic programming over the number of runs; runs may be empty.
    """
    best, before = cost[:, 0], []
    for _ in range(count - 1):
        found = (cost + best[:, :, None]).min(1)
        best = found.values
        before.append(found.indices)
    edge = torch.full((len(cost), 1), cost.shape[1] - 1)
    edges = [edge]
    for indices in reversed(before):
        edge = indices.gather(1, edge)
        edges.append(edge)
    return torch.cat([torch.zeros_like(edge), *reversed(edges)], 1)
