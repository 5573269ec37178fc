"""Sums over samples of the sizes of a weight's gradient, which is never held as a whole.

The gradient of one sample is dy^T x, and every sample's own size counts: summed with their signs
the gradients of a trained model cancel. A slice of rows is multiplied out, added up in float32 and
forgotten, sample after sample, so the order of the sums depends on nothing but the samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from pennyweight.core import Mapper, NumericalError, Stats

GRADIENT_FIELDS = frozenset({"abs_gradient", "squared_gradient"})
ROWS = 512  # rows of the gradient that one task holds

Pair = tuple[Float[Tensor, "_ in"], Float[Tensor, "_ out"]]
"""What entered a linear [tokens, in], and the gradient of what left it [tokens, out]."""


class GradientCollector:
    """The gradient fields of the Stats of one weight [out, in], grown part by part."""

    def __init__(self, shape: tuple[int, int], needs: frozenset[str], workers: Mapper) -> None:
        self._workers, self._tokens, self._samples = workers, 0, 0
        self._sums = {name: torch.zeros(shape) for name in sorted(needs & GRADIENT_FIELDS)}

    def add(self, samples: Sequence[Pair]) -> None:
        """Take in one (x, dy) of each sample; a sample that did not come here has no rows.

        Raises NumericalError if a gradient is NaN or Inf.
        """
        seen = [(x.float(), dy.float()) for x, dy in samples if len(x)]
        self._tokens += sum(len(x) for x, _ in seen)
        self._samples += len(seen)
        for _, dy in seen:
            if not bool(dy.isfinite().all()):
                raise NumericalError("the gradient holds NaN or Inf on calibration data")
        rows = len(next(iter(self._sums.values()))) if self._sums else 0

        def add_rows(start: int) -> None:
            for x, dy in seen:
                gradient = dy[:, start : start + ROWS].T @ x
                if "squared_gradient" in self._sums:
                    total = self._sums["squared_gradient"][start : start + ROWS]
                    total.addcmul_(gradient, gradient)
                if "abs_gradient" in self._sums:
                    self._sums["abs_gradient"][start : start + ROWS].add_(gradient.abs_())

        self._workers.map(add_rows, range(0, rows, ROWS))

    def stats(self) -> Stats:
        """What was seen so far; `samples` counts those that came here."""
        given = {name: self._sums.get(name) for name in GRADIENT_FIELDS}
        return Stats(tokens=self._tokens, samples=self._samples, **given)  # pyright: ignore[reportArgumentType]
