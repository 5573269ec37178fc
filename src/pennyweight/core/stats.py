"""What observation remembers of one linear: its inputs, and the gradient of its weight."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pennyweight.core.errors import NumericalError


@dataclass(frozen=True, kw_only=True)
class Stats:
    """Sums over tokens, so that the Stats of two shards of data add up to the Stats of the whole.

    Only the fields that some method asked for are present. `abs_gradient` and `squared_gradient`
    add up what each sample's gradient is in size, not the gradients themselves, which would cancel.
    """

    tokens: int = 0
    gram: Float[Tensor, "in in"] | None = None  # sum of x x^T
    absmax: Float[Tensor, " in"] | None = None  # largest |x| of each input channel
    abs_sum: Float[Tensor, " in"] | None = None  # sum of |x|
    square_sum: Float[Tensor, " in"] | None = None  # sum of x^2
    least_absmax: Float[Tensor, " in"] | None = None  # least absmax of any one sample
    samples: int = 0  # whose gradients were summed
    abs_gradient: Float[Tensor, "out in"] | None = None  # sum over samples of |dL/dW|
    squared_gradient: Float[Tensor, "out in"] | None = None  # sum over samples of (dL/dW)^2
    keep: Bool[Tensor, "out in"] | None = None  # weights chosen to stay as they are, not a sum
    _derived: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)
    _lock: Any = field(default_factory=threading.Lock, repr=False, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """Sent to another process it leaves what was derived behind."""
        return partial(Stats, **self._values()), ()

    def _values(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name[0] != "_"}

    def derive(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """compute(), done once: slices of one weight that are solved in parallel share the
        result, which therefore may depend on fields of the input alone."""
        with self._lock:
            if key not in self._derived:
                self._derived[key] = compute()
            return self._derived[key]

    def forget(self) -> None:
        """Free what was derived, which may be as large as what was observed."""
        with self._lock:
            self._derived.clear()

    @property
    def hessian(self) -> Float[Tensor, "in in"]:
        """Mean of x x^T over tokens: half the Hessian of the layer's squared output error."""
        return self.require("gram") / max(self.tokens, 1)

    def require(self, name: str) -> Tensor:
        """The field of that name. Raises NumericalError if it was not observed."""
        value = getattr(self, name)
        if value is None:
            noun = {"gram": "Hessian"}.get(name, name)
            raise NumericalError(f"no {noun} was observed; this method needs calibration data")
        return value

    def rows(self, start: int, stop: int) -> Stats:
        """The Stats of rows start .. stop - 1 of the weight; what was derived is shared."""
        part = {name: getattr(self, name) for name in OF_THE_WEIGHT}
        return replace(self, **{k: None if v is None else v[start:stop] for k, v in part.items()})

    def merge(self, other: Stats) -> Stats:
        """The Stats of both shards of data together. `keep` is a choice and must be made anew."""
        values = {
            name: _combine(value, getattr(other, name), HOW.get(name))
            for name, value in self._values().items()
            if name != "keep"
        }
        return Stats(**values)


OF_THE_WEIGHT = ("abs_gradient", "squared_gradient", "keep")  # one number for each weight
HOW = {"absmax": torch.maximum, "least_absmax": torch.minimum}  # all others are sums


def _combine(a: Any, b: Any, how: Callable | None) -> Any:
    if a is None or b is None:
        return b if a is None else a
    return how(a, b) if how else a + b
