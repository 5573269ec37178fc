"""LoRC: the error of rounding as a matrix of low rank, by its plain singular values.

Yao et al. 2023 (ZeroQuant-V2), https://arxiv.org/abs/2303.08302, section 5
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from pennyweight.core import Format, Mapper, Quantized, Stats
from pennyweight.quantize.base import Limited, Prepares, quantizer
from pennyweight.quantize.low_rank import Factors, correct, factor_bytes
from pennyweight.quantize.nested import nested


@quantizer("lorc")  # pyright: ignore[reportArgumentType]  # needs is a property
@dataclass(frozen=True, kw_only=True)
class LoRC:
    """Low-rank correction of the weight error; data-free."""

    rank: int = 8
    base: str = "rtn"  # quantizer whose error is corrected
    base_options: Mapping[str, Any] = field(default_factory=dict)
    factors: Factors = "auto"  # dtype they are stored in; auto: the checkpoint's
    source: ClassVar[str] = "ZeroQuant-V2: Yao et al. 2023, arXiv:2303.08302"

    @property
    def needs(self) -> frozenset[str]:
        return nested(self.base, self.base_options).needs

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
        identity = lambda block: block
        return correct(weight, quantized, identity, self.rank, self.factors, workers)
