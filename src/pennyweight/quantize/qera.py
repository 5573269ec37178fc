"""QERA: the matrix of low rank that leaves the least expected error of the layer's output.

Zhang et al. 2024, https://arxiv.org/abs/2410.06040

What differs from the authors' code: no square root of E[x x^T] and no inverse of it is computed
(`quantize.low_rank` says why), so nothing has to be clamped.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from pennyweight.core import Format, Mapper, Quantized, Stats
from pennyweight.quantize.base import Limited, Prepares, quantizer
from pennyweight.quantize.low_rank import Factors, correct, diagonal, factor_bytes, full
from pennyweight.quantize.nested import nested


@quantizer("qera")  # pyright: ignore[reportArgumentType]  # needs is a property
@dataclass(frozen=True, kw_only=True)
class QERA:
    """Low-rank correction of least expected output error."""

    inputs: Literal["exact", "diagonal"] = "exact"  # all of E[x x^T], or E[x^2] of each channel
    rank: int = 32
    base: str = "rtn"  # quantizer whose error is corrected
    base_options: Mapping[str, Any] = field(default_factory=dict)
    factors: Factors = "auto"  # dtype they are stored in; auto: the checkpoint's
    source: ClassVar[str] = "Zhang et al. 2024, arXiv:2410.06040"

    @property
    def needs(self) -> frozenset[str]:
        return nested(self.base, self.base_options).needs | {self._observed}

    def check_format(self, format: Format) -> None:
        base = nested(self.base, self.base_options)
        if isinstance(base, Limited):
            base.check_format(format)

    def added_bytes(self, shape: tuple[int, int], format: Format) -> int:
        return factor_bytes(shape, self.rank, self.factors, format)

    def prepare(self, stats: Stats, workers: Mapper) -> None:
        base = nested(self.base, self.base_options)
        if isinstance(base, Prepares):
            base.prepare(stats, workers)

    def __call__(self, weight: Float[Tensor, "out in"], format: Format, stats: Stats) -> Quantized:
        return nested(self.base, self.base_options)(weight, format, stats)

    def finish(
        self,
        weight: Float[Tensor, "out in"],
        quantized: Quantized,
        format: Format,
        stats: Stats,
        workers: Mapper,
    ) -> Quantized:
        """Raises FormatError if the weight has no such rank."""
        seen = stats.require(self._observed) / max(stats.tokens, 1)
        measure = full(seen, workers) if self.inputs == "exact" else diagonal(seen)
        return correct(weight, quantized, measure, self.rank, self.factors, workers)

    @property
    def _observed(self) -> str:
        return "gram" if self.inputs == "exact" else "square_sum"
