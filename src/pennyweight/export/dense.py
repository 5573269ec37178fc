"""The quantized weights written out again as ordinary ones: as large as the source, runs anywhere.

For studying a format that no engine serves. The values are those that the codes stand for, rounded
to the dtype of the source; activations are not rounded, because nothing in the files says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from pennyweight.core import FormatError
from pennyweight.export.base import TARGETS, Linear, Part


class Dense:
    about = "dequantized weights in the dtype of the source, as large as the source"
    serves = "whatever runs the source; activations are not rounded"
    exact = False

    def parts(self, linear: Linear) -> dict[str, Part]:
        if linear.part_of is not None:
            raise FormatError(
                f"{linear.name}: the source keeps all experts in {linear.part_of}, and they cannot "
                "be put together again yet; use the target compressed-tensors or packed"
            )

        def make() -> Tensor:
            weight = linear.load().dequantize().to(linear.dtype)
            return weight.T.contiguous() if linear.transposed else weight

        shape = linear.shape[::-1] if linear.transposed else linear.shape
        return {"weight": Part(linear.dtype, shape, make)}

    def config(self, linears: Sequence[Linear], ignore: list[str]) -> dict[str, Any] | None:
        return None


TARGETS.register("dense")(Dense())
