"""Any quantizer, and a matrix of low rank that undoes most of its error.

What the methods of this family differ in is by which measure of the inputs the error is small.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from pennyweight.core import Format, Mapper, Quantized, Stats
from pennyweight.quantize.base import Limited, Prepares, Quantizer
from pennyweight.quantize.low_rank import Factors, Measure, correct, factor_bytes
from pennyweight.quantize.nested import nested


@dataclass(frozen=True, kw_only=True)
class Corrected(ABC):
    """A quantizer for which `measure` says what an error costs."""

    rank: int = 32
    base: str = "rtn"  # quantizer whose error is corrected
    base_options: Mapping[str, Any] = field(default_factory=dict)
    factors: Factors = "auto"  # dtype they are stored in; auto: the checkpoint's
    # Raises UnknownNameError or RecipeError if the base is not a quantizer.
    needs: ClassVar[Any] = property(lambda self: self._base.needs | self.observed)

    @property
    def observed(self) -> frozenset[str]:
        """The fields of Stats that the measure is made of."""
        return frozenset()

    @abstractmethod
    def measure(self, stats: Stats, workers: Mapper) -> Measure: ...

    def check_format(self, format: Format) -> None:
        if isinstance(self._base, Limited):
            self._base.check_format(format)

    def prepare(self, stats: Stats, workers: Mapper) -> None:
        if isinstance(self._base, Prepares):
            self._base.prepare(stats, workers)

    def __call__(self, weight: Float[Tensor, "out in"], format: Format, stats: Stats) -> Quantized:
        return self._base(weight, format, stats)

    def finish(
        self,
        weight: Float[Tensor, "out in"],
        quantized: Quantized,
        format: Format,
        stats: Stats,
        workers: Mapper,
    ) -> Quantized:
        """Raises FormatError if the weight has no such rank."""
        measure = self.measure(stats, workers)
        return correct(weight, quantized, measure, self.rank, self.factors, workers)

    def added_bytes(self, shape: tuple[int, int], format: Format) -> int:
        return factor_bytes(shape, self.rank, self.factors, format)

    @property
    def _base(self) -> Quantizer:
        return nested(self.base, self.base_options)
