"""A table of each row's own values, by k-means.

Zhao et al. 2020, https://arxiv.org/abs/2010.07109, with a table per row instead of per tensor.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pennyweight.core import Format, Quantized, Stats
from pennyweight.formats.table import require_table
from pennyweight.quantize.base import quantizer
from pennyweight.quantize.clusters import cluster


@dataclass(frozen=True, kw_only=True)
class KMeans:
    """A table per row by k-means; every weight counts alike."""

    keep_zeros: bool = False  # a row that holds zeros gets a value of exactly zero (pruned models)
    needs: ClassVar[frozenset[str]] = frozenset()
    source: ClassVar[str] = "Zhao et al. 2020, arXiv:2010.07109"

    def check_format(self, format: Format) -> None:
        require_table(format)

    def __call__(self, weight: Float[Tensor, "out in"], format: Format, stats: Stats) -> Quantized:
        """Weights in `stats.keep`, which something else stores, do not count."""
        importance = torch.ones_like(weight)
        if stats.keep is not None:
            weight, importance = weight.where(~stats.keep, 0.0), (~stats.keep).float()
        return Quantized(weight=cluster(weight, importance, format, self.keep_zeros))


quantizer("kmeans")(KMeans)  # not as a decorator, which hides from the type checker what it is
