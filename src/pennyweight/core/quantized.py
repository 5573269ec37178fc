"""What a quantizer hands back."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from pennyweight.core.format import QTensor


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """A quantized weight, and what the quantizer has to say about how it got there.

    notes: short facts for the record, such as a damping that had to be raised.
    """

    weight: QTensor
    notes: Mapping[str, float | str] = field(default_factory=dict)

    def dequantize(self) -> Float[Tensor, "out in"]:
        return self.weight.dequantize()
