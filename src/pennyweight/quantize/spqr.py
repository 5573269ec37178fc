"""Keep the weights that neither a small group nor later columns can make up for.

Dettmers et al. 2023, https://arxiv.org/abs/2306.03078

With U the factor of the inverse Hessian and e a weight's rounding error, (e / U_jj)^2 is what the
layer's output loses after all later columns have made up for it. A weight is kept if leaving it
out of its group lowers that sum over the group by more than a threshold, or if its own is above the
threshold when its column comes.

What differs from the authors' code (Vahe1994/SpQR, spqr_engine.py). Their groups are fitted and
searched for outliers when their columns come; here all at the start, as columns are visited in the
order of their importance and groups keep their place. The outliers are found by one pass and the
codes by a second, whose ranges leave out all of them. Leaving out a weight that is neither the
largest nor the smallest of its group changes no range, so three fits are enough where they do as
many as the group has weights. A weight that is left out counts as zero, which every range includes.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pennyweight.core import Format, Mapper, Quantized, Serial, Sparse, Stats, blocked
from pennyweight.formats.rounding import round_to_nearest
from pennyweight.quantize.base import quantizer
from pennyweight.quantize.gptq import GPTQ

ROWS = 1024  # searched per task


@quantizer("spqr")
@dataclass(frozen=True, kw_only=True)
class SpQR:
    """Keep the weights whose rounding later columns cannot make up for, GPTQ on the others.

    Made for groups of 16 with scales that are quantized themselves; that is the scheme's part.
    """

    threshold: float = 0.2  # of the error that makes an outlier, in units of rounding to zero
    damp: float = 1.0  # as in gptq; the authors' value
    act_order: bool = True  # as in gptq
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})
    source: ClassVar[str] = "Dettmers et al. 2023, arXiv:2306.03078"

    def check_format(self, format: Format) -> None:
        self._gptq.check_format(format)

    def select(
        self, weight: Float[Tensor, "out in"], format: Format, stats: Stats, workers: Mapper
    ) -> Bool[Tensor, "out in"]:
        factor = self._gptq.factor(stats, workers)
        pivots = torch.empty(weight.shape[1])
        pivots[factor.order] = factor.upper.diagonal()
        # Were a column rounded to its mean, this is what it would cost on average.
        threshold = self.threshold * (weight.var(0, correction=0) / pivots.square()).mean().item()
        rows = ROWS if format.rows_independent else len(weight)

        def search(start: int) -> Tensor:
            part = weight[start : start + rows]
            alone = spared_by_leaving_out(part, format, pivots) > threshold
            given = replace(stats, keep=alone)
            (sparse,) = self._gptq.solve(part, format, given, threshold=threshold).corrections
            assert isinstance(sparse, Sparse)
            return sparse.keep

        return torch.cat(workers.map(search, range(0, len(weight), rows)))

    def prepare(self, stats: Stats, workers: Mapper) -> None:
        self._gptq.prepare(stats, workers)

    def __call__(self, weight: Float[Tensor, "out in"], format: Format, stats: Stats) -> Quantized:
        """Chooses from the rows at hand where `stats` does not say what to keep."""
        if stats.keep is None:
            stats = replace(stats, keep=self.select(weight, format, stats, Serial()))
        return self._gptq.solve(weight, format, stats)

    @property
    def _gptq(self) -> GPTQ:
        return GPTQ(damp=self.damp, act_order=self.act_order, range="minmax")


def spared_by_leaving_out(
    weight: Float[Tensor, "out in"], format: Format, pivots: Float[Tensor, " in"]
) -> Float[Tensor, "out in"]:
    """How much less its group would lose if a weight were not in it, squared, in units of pivots.

    A weight that spans no range takes away its own error alone. One that does takes more.
    """
    groups = format.groups(*weight.shape)

    def losses(values: Tensor) -> Tensor:
        error = (values - round_to_nearest(values, format).dequantize()) / pivots
        return _by_group(error.square(), groups)

    own, grouped = losses(weight), _by_group(weight, groups)
    whole, spared = own.sum(-1, keepdim=True), own.clone()
    for extreme in (grouped.argmax(-1, keepdim=True), grouped.argmin(-1, keepdim=True)):
        without = _from_groups(grouped.scatter(-1, extreme, 0.0), weight.shape, groups)
        spared.scatter_(-1, extreme, whole - losses(without).sum(-1, keepdim=True))
    return _from_groups(spared, weight.shape, groups)


def _by_group(values: Tensor, groups: tuple[int, int]) -> Tensor:
    """[row_groups, groups, weights of a group]"""
    return blocked(values, groups).transpose(1, 2).flatten(2)


def _from_groups(values: Tensor, shape: torch.Size, groups: tuple[int, int]) -> Tensor:
    high = shape[0] // max(groups[0], 1)
    return values.unflatten(2, (high, -1)).transpose(1, 2).reshape(shape)
