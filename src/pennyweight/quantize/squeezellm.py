"""SqueezeLLM: a table per row by k-means in which weights count by their Fisher information, and a
few weights kept as they are.

Kim et al. 2023, https://arxiv.org/abs/2306.07629

What differs from the authors' code. k-means starts from the exact optimum between 128 cells and
from even steps, not from k-means++ with a seed, and its sums are float64. The squared gradients are
accumulated in float32, not in the bfloat16 of the model. Outliers are the given share of largest
magnitude, where the code tunes the factor of an interquartile range until its threshold gives that
share. The gradients are of as many samples as the recipe calibrates on; the paper takes 100 of 512
tokens.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pennyweight.core import Format, Mapper, NumericalError, Quantized, Sparse, Stats
from pennyweight.formats.table import require_table
from pennyweight.quantize.base import Quantizer, quantizer
from pennyweight.quantize.clusters import cluster
from pennyweight.quantize.kmeans import KMeans
from pennyweight.saliency.select import keep_highest


@quantizer("squeezellm")
@dataclass(frozen=True, kw_only=True)
class SqueezeLLM:
    """A table per row by Fisher-weighted k-means; sensitive and large weights kept."""

    sensitive: float = 0.0005  # share of all weights, of largest squared gradient, that is kept
    outliers: float = 0.004  # share of all weights, of largest magnitude, that is kept besides
    keep_zeros: bool = False  # a row that holds zeros gets a value of exactly zero (pruned models)
    needs: ClassVar[frozenset[str]] = frozenset({"squared_gradient"})
    source: ClassVar[str] = "Kim et al. 2023, arXiv:2306.07629"

    def check_format(self, format: Format) -> None:
        require_table(format)

    def without_data(self) -> Quantizer:
        return KMeans(keep_zeros=self.keep_zeros)

    def select(
        self, weight: Float[Tensor, "out in"], format: Format, stats: Stats, workers: Mapper
    ) -> Bool[Tensor, "out in"]:
        """Raises RecipeError on a share outside 0 to 1, NumericalError on NaN."""
        if not bool(weight.isfinite().all()):
            raise NumericalError("weight holds NaN or Inf, which no code can stand for")
        sensitive = keep_highest(stats.require("squared_gradient"), self.sensitive)
        # -1: what is kept already does not count among the largest
        return sensitive | keep_highest(weight.abs().where(~sensitive, -1.0), self.outliers)

    def __call__(self, weight: Float[Tensor, "out in"], format: Format, stats: Stats) -> Quantized:
        """Weights in `stats.keep` are zero in the eyes of k-means, and do not count."""
        self.check_format(format)
        importance, keep = stats.require("squared_gradient"), stats.keep
        if keep is None or not (self.sensitive or self.outliers):
            return Quantized(weight=cluster(weight, importance, format, self.keep_zeros))
        assert format.table is not None
        importance, rest = importance.where(~keep, 0.0), weight.where(~keep, 0.0)
        untouched = importance.amax(1, keepdim=True) == 0
        importance = torch.where(untouched, (~keep).float(), importance)
        return Quantized(
            weight=cluster(rest, importance, format, self.keep_zeros),
            corrections=(Sparse.of(weight, keep, format.table),),
        )
