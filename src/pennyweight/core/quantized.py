"""What a quantizer hands back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from jaxtyping import Float
from torch import Tensor

from pennyweight.core.correction import Correction
from pennyweight.core.format import QTensor


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """A quantized weight, and what the quantizer has to say about how it got there.

    corrections: applied to the dequantized weight in this order.
    notes: short facts for the record, such as a damping that had to be raised.
    """

    weight: QTensor
    corrections: tuple[Correction, ...] = ()
    notes: Mapping[str, float | str] = field(default_factory=dict)

    def dequantize(self) -> Float[Tensor, "out in"]:
        weight = self.weight.dequantize()
        for correction in self.corrections:
            weight = correction.apply(weight)
        return weight

    def rows(self, start: int, stop: int) -> Quantized:
        """Rows start .. stop - 1; its groups must lie within rows."""
        return replace(
            self,
            weight=self.weight.rows(start, stop),
            corrections=tuple(one.rows(start, stop) for one in self.corrections),
        )

    def join(self, others: list[Quantized]) -> Quantized:
        """The inverse of cutting with `rows`; the notes are the first one's."""
        return replace(
            self,
            weight=self.weight.join([other.weight for other in others]),
            corrections=tuple(
                first.join(list(rest))  # pyright: ignore[reportArgumentType]
                for first, *rest in zip(
                    self.corrections, *(other.corrections for other in others), strict=True
                )
            ),
        )
