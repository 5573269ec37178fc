"""Keep the weights the loss is steepest in, and round the rest.

GWQ, 2024, https://arxiv.org/abs/2411.00850

The authors publish no code. What the paper leaves open is an option here, with its most likely
reading as the default: the saliency is |dL/dW| of the causal language modelling loss, summed over
samples (one is enough, they say), and the share is taken of each tensor. Taken of a decoder block
(`layer`) or of the model, it is of all tensors there that have this quantizer with these options;
an expert that the calibration text does not reach then keeps its own share, by magnitude.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, ClassVar, Literal

from jaxtyping import Bool, Float
from torch import Tensor

from pennyweight.core import Format, Mapper, Quantized, RecipeError, Serial, Stats
from pennyweight.formats.corrections import sparse_bytes
from pennyweight.quantize.base import Limited, Prepares, Quantizer, quantizer
from pennyweight.quantize.kept import kept_dtype, round_around
from pennyweight.quantize.nested import nested
from pennyweight.saliency import SALIENCIES
from pennyweight.saliency.select import WIDE, Scope, Share, Wide, count_of, keep_highest

GRADIENTS = frozenset({"abs_gradient", "squared_gradient"})


@quantizer("gwq")
@dataclass(frozen=True, kw_only=True)
class GWQ:
    """Keep the most salient weights in 16 bits, round the others without them."""

    saliency: str = "abs_gradient"  # what makes a weight an outlier: any registered saliency
    share: Share = 0.01  # of the weights that are kept
    scope: Literal[Scope, Wide] = "tensor"  # of which the share is taken
    residual: str = "rtn"  # quantizer of the others
    residual_options: Mapping[str, Any] = field(default_factory=dict)
    source: ClassVar[str] = "GWQ, 2024, arXiv:2411.00850"

    # Raises UnknownNameError or RecipeError if the saliency or the residual is not one, or the
    # scope too wide for the saliency.
    needs: ClassVar[Any] = property(lambda self: self._scored_by() | self._residual.needs)

    def check_format(self, format: Format) -> None:
        if isinstance(self._residual, Limited):
            self._residual.check_format(format)

    @property
    def fallback(self) -> str:
        return f"gwq by magnitude, {self.without_data().residual}"

    def without_data(self) -> "GWQ":
        alone = replace(self, saliency="magnitude", scope=self._own_scope)
        if not self._residual.needs:
            return alone
        return replace(alone, residual="rtn", residual_options={})

    def select(
        self, weight: Float[Tensor, "out in"], format: Format, stats: Stats, workers: Mapper
    ) -> Bool[Tensor, "out in"]:
        """Raises NumericalError if the saliency is NaN anywhere, RecipeError for a scope that one
        tensor does not fill."""
        if self._is_wide and not self.is_blind(stats):
            raise RecipeError(
                f"gwq.scope: what to keep of a {self.scope} cannot be chosen from one tensor; a "
                "recipe that is run as a whole can"
            )
        return keep_highest(self.score(weight, format, stats), self.share, self._own_scope)

    def added_bytes(self, shape: tuple[int, int], format: Format) -> int:
        """A scope wider than a tensor gives this tensor more or less, and the same to all."""
        kept = count_of(self.share, prod(shape))
        return sparse_bytes(*shape, kept, kept_dtype(format).itemsize)

    def score(
        self, weight: Float[Tensor, "out in"], format: Format, stats: Stats
    ) -> Float[Tensor, "out in"]:
        saliency = "magnitude" if self.is_blind(stats) else self.saliency
        return SALIENCIES[saliency]()(weight, format, stats)

    def prepare(self, stats: Stats, workers: Mapper) -> None:
        if isinstance(self._residual, Prepares):
            self._residual.prepare(stats, workers)

    def __call__(self, weight: Float[Tensor, "out in"], format: Format, stats: Stats) -> Quantized:
        """Chooses from the rows at hand where `stats` does not say what to keep."""
        if stats.keep is None:
            stats = replace(stats, keep=self.select(weight, format, stats, Serial()))
        assert stats.keep is not None
        quantized = round_around(self._residual, weight, format, stats, stats.keep)
        notes = self._notes(stats)
        return replace(quantized, notes={**quantized.notes, **notes}) if notes else quantized

    @property
    def _residual(self) -> Quantizer:
        return nested(self.residual, self.residual_options)

    @property
    def _is_wide(self) -> bool:
        return self.scope in WIDE

    @property
    def _own_scope(self) -> Scope:
        """What the share is of where a tensor has to choose alone."""
        return "row" if self.scope == "row" else "tensor"

    def _scored_by(self) -> frozenset[str]:
        needs = SALIENCIES[self.saliency].needs
        if self._is_wide and needs - GRADIENTS:
            able = [name for name, saliency in SALIENCIES.items() if saliency.needs <= GRADIENTS]
            raise RecipeError(
                f"scope {self.scope!r}: the choice is made before inputs are observed, and "
                f"saliency {self.saliency!r} reads {', '.join(sorted(needs - GRADIENTS))}; "
                f"use scope 'tensor', or saliency {', '.join(able)}"
            )
        return needs

    def is_blind(self, stats: Stats) -> bool:
        """No sample's gradient says anything: an expert that no token reached."""
        return bool(SALIENCIES[self.saliency].needs & GRADIENTS) and stats.samples == 0

    def _notes(self, stats: Stats) -> dict[str, float | str]:
        if not self.is_blind(stats):
            return {}
        return {"fallback": "gwq by magnitude", "why": "no gradient reached this weight"}
