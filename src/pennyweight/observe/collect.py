"""Sums over calibration tokens, cut into tasks that do not depend on the number of threads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from pennyweight.core import Mapper, NumericalError, Stats

GRAM_ROWS = 512  # rows of the Gram matrix per task: enough tasks to share, products still large


class Collector:
    """The Stats of one input, grown part by part in memory that is taken once.

    Sums are float32. Two collectors that saw two shards of data give Stats that `merge` to the
    whole.
    """

    def __init__(self, needs: frozenset[str], workers: Mapper) -> None:
        self._needs, self._workers = needs, workers
        self._tokens = 0
        self._gram: Tensor | None = None
        self._absmax: Tensor | None = None

    def add(self, inputs: Sequence[Float[Tensor, "_ in"]]) -> None:
        """Take in the rows of these inputs. Raises NumericalError if one is NaN or Inf."""
        rows = sum(len(part) for part in inputs)
        if not rows:
            return
        x = torch.empty(rows, inputs[0].shape[1])
        absmax = self._fill(x, inputs)
        if not bool(absmax.isfinite().all()):
            channel = int((~absmax.isfinite()).nonzero()[0])
            raise NumericalError(
                f"the input holds NaN or Inf (channel {channel}) on calibration data"
            )
        self._tokens += rows
        if "absmax" in self._needs:
            seen = self._absmax
            self._absmax = absmax if seen is None else torch.maximum(seen, absmax)
        if "gram" in self._needs:
            self._add_gram(x)

    def _fill(self, x: Float[Tensor, "tokens in"], inputs) -> Float[Tensor, " in"]:
        """Copy the inputs into x, one below the other; returns the largest |x| of each channel."""
        parts = x.split([len(part) for part in inputs])

        def fill(index: int) -> Tensor:
            if not len(inputs[index]):
                return x.new_zeros(x.shape[1])
            low, high = torch.aminmax(parts[index].copy_(inputs[index]), dim=0)
            return torch.maximum(-low, high)

        return torch.stack(self._workers.map(fill, range(len(inputs)))).amax(0)

    def _add_gram(self, x: Float[Tensor, "tokens in"]) -> None:
        """Add x^T x to the blocks on and above the diagonal; the rest is their mirror."""
        size, first = x.shape[1], self._gram is None
        gram = torch.empty(size, size) if self._gram is None else self._gram

        def add_rows(start: int) -> None:
            block = gram[start : start + GRAM_ROWS, start:]
            left = x[:, start : start + GRAM_ROWS].T
            torch.addmm(block, left, x[:, start:], beta=0 if first else 1, out=block)

        self._workers.map(add_rows, range(0, size, GRAM_ROWS))
        self._gram = gram

    def stats(self) -> Stats:
        """What was seen so far."""
        if self._gram is not None:
            size, gram = len(self._gram), self._gram

            def mirror(start: int) -> None:
                stop = start + GRAM_ROWS
                gram[stop:, start:stop] = gram[start:stop, stop:].T

            self._workers.map(mirror, range(0, size, GRAM_ROWS))
        return Stats(tokens=self._tokens, gram=self._gram, absmax=self._absmax)


def observe(
    inputs: Sequence[Float[Tensor, "_ in"]], needs: frozenset[str], workers: Mapper
) -> Stats:
    """The Stats of inputs that are all at hand."""
    collector = Collector(needs, workers)
    collector.add(inputs)
    return collector.stats()
