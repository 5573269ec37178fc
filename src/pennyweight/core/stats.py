"""What observation remembers of the inputs of one linear layer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pennyweight.core.errors import NumericalError


@dataclass(frozen=True, kw_only=True)
class Stats:
    """Sums over tokens, so that the Stats of two shards of data add up to the Stats of the whole.

    Only the fields that some method asked for are present.
    """

    tokens: int = 0
    gram: Float[Tensor, "in in"] | None = None  # sum of x x^T
    absmax: Float[Tensor, " in"] | None = None  # largest |x| of each input channel
    _derived: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)
    _lock: Any = field(default_factory=threading.Lock, repr=False, compare=False)

    def derive(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """compute(), done once: slices of one weight that are solved in parallel share the
        result."""
        with self._lock:
            if key not in self._derived:
                self._derived[key] = compute()
            return self._derived[key]

    @property
    def hessian(self) -> Float[Tensor, "in in"]:
        """Mean of x x^T over tokens: half the Hessian of the layer's squared output error."""
        if self.gram is None:
            raise NumericalError("no Hessian was observed; this method needs calibration data")
        return self.gram / max(self.tokens, 1)

    def merge(self, other: Stats) -> Stats:
        """The Stats of both shards of data together."""
        return Stats(
            tokens=self.tokens + other.tokens,
            gram=_combine(self.gram, other.gram, torch.add),
            absmax=_combine(self.absmax, other.absmax, torch.maximum),
        )


def _combine(a: Tensor | None, b: Tensor | None, how) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return how(a, b)
