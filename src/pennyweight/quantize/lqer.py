"""LQER: the error of rounding as a matrix of low rank, channels weighted by their mean |x|.

Zhang et al. 2024, https://arxiv.org/abs/2402.02446

What differs from the authors' code: the size of a channel is mean |x| over all tokens, where theirs
is the largest such mean of any batch; their normalisation and clamping of it, which the solution
used here does not need, are left out. L2QER, with its factors in 8 bits, is `factors = "int8"`,
with a scale per row where the authors share exponents.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from pennyweight.core import Format, Mapper, Quantized, Stats
from pennyweight.quantize.base import Limited, Prepares, quantizer
from pennyweight.quantize.low_rank import Factors, correct, diagonal, factor_bytes
from pennyweight.quantize.nested import nested


@quantizer("lqer")  # pyright: ignore[reportArgumentType]  # needs is a property
@dataclass(frozen=True, kw_only=True)
class LQER:
    """Low-rank correction weighted by mean |x| of each channel."""

    rank: int = 32
    base: str = "rtn"  # quantizer whose error is corrected
    base_options: Mapping[str, Any] = field(default_factory=dict)
    factors: Factors = "auto"  # dtype they are stored in; auto: the checkpoint's
    source: ClassVar[str] = "Zhang et al. 2024, arXiv:2402.02446"

    @property
    def needs(self) -> frozenset[str]:
        return nested(self.base, self.base_options).needs | {"abs_sum"}

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
        size = stats.require("abs_sum") / max(stats.tokens, 1)
        measure = diagonal(size.double().square())
        return correct(weight, quantized, measure, self.rank, self.factors, workers)
