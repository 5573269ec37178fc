"""DGQ's two-phase search: 4-bit groups first, then the int8 row that their scales are factored by.

Zhang et al. 2023, https://arxiv.org/abs/2310.04836, section 3.2

Phase 1 takes each group alone and tries 20 shares of its range; phase 2 tries 80 scales of the row,
rounds the groups' scales to whole multiples of it, and restricts codes to what fits int8. Both
judge by the squared error of the layer's output.

What differs from the authors' code (ilur98/DGQ, quantizer_helper.py). The error is the exact
quadratic d G d^T with the Gram matrix G of all calibration tokens, in float32, where they take the
outputs of the last sample in the model's dtype; sums over samples cannot give that, so it is no
option here. A group's range always includes zero. The row scales that look best by the diagonal
blocks and the 32 main directions of G are compared by the whole of it; `shortlist` says how many. A
row that plain rounding does better is rounded plainly.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pennyweight.core import Format, Mapper, NumericalError, QTensor, Quantized, Stats
from pennyweight.formats.dual_grained import (
    LIMIT,
    require_dual_grained,
    store_row_scale,
    with_row_scale,
)
from pennyweight.formats.rounding import round_to_nearest
from pennyweight.quantize.base import quantizer

TOP = 1.02  # of the full range: one step above the first share that is tried
# Directions of the Gram matrix in which errors of different groups are added up before they are
# squared. Real inputs have a few that outweigh the rest; without them a shortlist misleads.
DIRECTIONS, PASSES = 32, 2


@quantizer("dgq")
@dataclass(frozen=True, kw_only=True)
class DGQ:
    """Two-phase grid search of dual-grained scales on the output error."""

    group_steps: int = 20  # shares of a group's range that phase 1 tries
    group_least: float = 0.8  # the smallest of them
    row_steps: int = 80  # shares of a row's range that phase 2 tries
    row_least: float = 0.2
    shortlist: int = 4  # of these, how many are compared by the whole quadratic
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})
    source: ClassVar[str] = "Zhang et al. 2023, arXiv:2310.04836"

    def check_format(self, format: Format) -> None:
        require_dual_grained(format, "dgq")

    def prepare(self, stats: Stats, workers: Mapper) -> None:
        _directions(stats)

    def __call__(self, weight: Float[Tensor, "out in"], format: Format, stats: Stats) -> Quantized:
        """Raises FormatError for a format that is not dual-grained, NumericalError on NaN or
        Inf."""
        self.check_format(format)
        rounded, directions = round_to_nearest(weight, format), _directions(stats)
        search = Search(
            weight=weight.float(), gram=stats.require("gram"), directions=directions, format=format
        )
        scale, zero = search.groups(shares(self.group_steps, self.group_least))
        row, loss = search.rows(scale, zero, shares(self.row_steps, self.row_least), self.shortlist)
        found = round_to_nearest(weight, format, with_row_scale(scale, row, format), zero)
        return Quantized(weight=choose(loss <= search.loss(rounded), found, rounded))


def shares(steps: int, least: float) -> list[float]:
    """Of the full range: 1.02 - (1.02 - least) i / steps, for i = 1 .. steps."""
    return [TOP - (TOP - least) * (i + 1) / steps for i in range(steps)]


def _directions(stats: Stats) -> Float[Tensor, "in n"]:
    """U such that U U^T is most of the Gram matrix, from a few passes of subspace iteration."""

    def compute() -> Tensor:
        gram = stats.require("gram")
        if not bool(gram.diagonal().isfinite().all()):
            raise NumericalError("the Hessian holds NaN or Inf")
        start = torch.randn(len(gram), DIRECTIONS, generator=torch.Generator().manual_seed(0))
        basis = torch.linalg.qr(start).Q
        for _ in range(PASSES):
            basis = torch.linalg.qr(gram @ basis).Q
        values, vectors = torch.linalg.eigh(basis.T @ gram @ basis)
        return basis @ (vectors * values.clamp(min=0).sqrt())

    return stats.derive("main directions", compute)


@dataclass(frozen=True, kw_only=True)
class Search:
    """The losses of candidate scales, group by group so that the scratch stays small."""

    weight: Float[Tensor, "out in"]
    gram: Float[Tensor, "in in"]
    directions: Float[Tensor, "in n"]
    format: Format

    @property
    def starts(self) -> range:
        """The first column of each group."""
        return range(0, self.weight.shape[1], self.size)

    @property
    def size(self) -> int:
        return self.format.group_size or self.weight.shape[1]

    def groups(self, ratios: list[float]) -> tuple[Tensor, Tensor]:
        """Phase 1: (scale, zero_point) [out, groups] of each group's least error, others aside."""
        scales, zeros = zip(*(self._group(start, ratios) for start in self.starts), strict=True)
        return torch.cat(scales, 1), torch.cat(zeros, 1)

    def _group(self, start: int, ratios: list[float]) -> tuple[Tensor, Tensor]:
        columns = slice(start, start + self.size)
        weight, gram = self.weight[:, columns], self.gram[columns, columns]
        low = weight.amin(1, keepdim=True).clamp(max=0)
        full = (weight.amax(1, keepdim=True).clamp(min=0) - low) / self.format.grid.highest
        zero = (-low / full.where(full > 0, 1.0)).round()  # the same for every share of the range
        scratch, best, best_loss = torch.empty_like(weight), full, torch.full_like(full, torch.inf)
        for ratio in ratios:
            scale = ratio * full
            error = _error(weight, scale, -zero, self.format.grid.highest - zero, scratch)
            loss = quadratic(error, gram)
            better = loss < best_loss
            best, best_loss = scale.where(better, best), loss.where(better, best_loss)
        return best, zero

    def rows(
        self, scale: Tensor, zero: Tensor, ratios: list[float], shortlist: int
    ) -> tuple[Float[Tensor, "out 1"], Float[Tensor, "out 1"]]:
        """Phase 2: the row scale, of these shares of absmax / 127, with the least output error, and
        that error."""
        full = self.weight.abs().amax(1, keepdim=True) / LIMIT
        trials = torch.cat([store_row_scale(ratio * full, self.format) for ratio in ratios], 1)
        if shortlist < len(ratios):
            order = self._estimates(scale, zero, trials).argsort(dim=1, stable=True)
            trials = trials.gather(1, order[:, : max(shortlist, 1)])
        best, best_loss = trials[:, :1], torch.full_like(full, torch.inf)
        error = torch.empty_like(self.weight)
        for row in trials.split(1, 1):
            for start in self.starts:
                self._row_error(start, scale, zero, row, error[:, start : start + self.size])
            loss = quadratic(error, self.gram)
            better = loss < best_loss
            best, best_loss = row.where(better, best), loss.where(better, best_loss)
        return best, best_loss

    def _estimates(self, scale: Tensor, zero: Tensor, trials: Tensor) -> Float[Tensor, "out n"]:
        """The losses by the diagonal blocks of the Gram matrix, and between groups by its main
        directions."""
        losses, rows = torch.zeros_like(trials), len(self.weight)
        along = torch.zeros(trials.shape[1], rows, self.directions.shape[1])
        scratch = torch.empty(rows, self.size)
        for start in self.starts:
            columns = slice(start, start + self.size)
            both = torch.cat([self.gram[columns, columns], self.directions[columns]], 1)
            for index in range(trials.shape[1]):
                row = trials[:, index : index + 1]
                error = self._row_error(start, scale, zero, row, scratch)
                product = error @ both
                within, across = product[:, : self.size], product[:, self.size :]
                losses[:, index] += _dot(within, error) - _dot(across, across)
                along[index] += across
        return losses + _dot(along, along).T

    def _row_error(self, start: int, scale: Tensor, zero: Tensor, row: Tensor, out: Tensor):
        """What rounding one group costs under this row scale, written to `out`."""
        weight, highest = self.weight[:, start : start + self.size], self.format.grid.highest
        group = slice(start // self.size, start // self.size + 1)
        k, zero = (scale[:, group] / row).round().clamp(1, LIMIT), zero[:, group]
        reach = (LIMIT / k).floor()
        low, high = torch.maximum(-zero, -reach), torch.minimum(highest - zero, reach)
        return _error(weight, k * row, low, high, out)

    def loss(self, q: QTensor) -> Float[Tensor, "out 1"]:
        return quadratic(q.dequantize() - self.weight, self.gram)


def choose(first: Bool[Tensor, "out 1"], a: QTensor, b: QTensor) -> QTensor:
    """Row by row a, or b where `first` is false."""
    pick = lambda x, y: x.where(first, y)
    assert isinstance(a.scale, QTensor) and isinstance(b.scale, QTensor)
    codes, row = pick(a.scale.codes, b.scale.codes), pick(a.scale.scale, b.scale.scale)
    return replace(
        a, codes=pick(a.codes, b.codes), scale=replace(a.scale, codes=codes, scale=row),
        zero_point=pick(a.zero_point, b.zero_point),
    )  # fmt: skip


def _error(weight: Tensor, scale: Tensor, low: Tensor, high: Tensor, out: Tensor) -> Tensor:
    """Rounded minus weight, in steps of `scale` from low to high. A scale of 0 is that of a group
    of zeros."""
    torch.div(weight, scale.where(scale > 0, 1.0), out=out)
    out.round_()
    torch.minimum(torch.maximum(out, low, out=out), high, out=out)  # clamp_ takes ten times longer
    return out.mul_(scale).sub_(weight)


def quadratic(error: Float[Tensor, "out n"], gram: Float[Tensor, "n n"]) -> Float[Tensor, "out 1"]:
    """Squared error of each output, summed over tokens."""
    return _dot(error @ gram, error).unsqueeze(1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.vecdot(a, b)
