"""Sums over calibration tokens, cut into tasks that do not depend on the number of threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pennyweight.core import Mapper, NumericalError, Stats

GRAM_ROWS = 256  # rows of the Gram matrix per task: enough tasks to share, products still large


def _absmax(x: Float[Tensor, "tokens in"]) -> Float[Tensor, " in"]:
    return torch.maximum(-x.amin(0), x.amax(0))  # aminmax along an axis takes six times as long


# What one sample says of each channel; how two samples are put together, Stats knows.
PER_CHANNEL: dict[str, Callable[[Tensor], Tensor]] = {
    "absmax": _absmax,
    "least_absmax": _absmax,
    "abs_sum": lambda x: torch.linalg.vector_norm(x, 1, dim=0),
    "square_sum": lambda x: x.square().sum(0),
}


class Collector:
    """The Stats of one input, grown part by part in memory that is taken once.

    Sums are float32. What each call of `add` saw is summed by itself and then added: the Stats of
    the parts, each collected elsewhere and merged in order, are the same bit for bit.
    """

    def __init__(self, needs: frozenset[str], workers: Mapper) -> None:
        self._needs, self._workers = needs, workers
        self._gram: Tensor | None = None
        self._rest = Stats()  # without the Gram matrix, which grows in place

    def add(self, inputs: Sequence[Float[Tensor, "_ in"]]) -> None:
        """Take in the rows of these inputs, one of each sample. Raises NumericalError if one is
        NaN or Inf."""
        inputs = [part for part in inputs if len(part)]  # an expert that a sample did not reach
        if not inputs:
            return
        x = torch.empty(sum(map(len, inputs)), inputs[0].shape[1])
        part = Stats(tokens=len(x))
        for found in self._fill(x, inputs):
            _require_finite(found["absmax"])
            part = part.merge(Stats(**{name: found[name] for name in self._needs & found.keys()}))
        self._rest = self._rest.merge(part)
        if "gram" in self._needs:
            self._add_gram(x)

    def _fill(self, x: Float[Tensor, "tokens in"], inputs) -> list[dict[str, Any]]:
        """Copy the inputs into x, one below the other; returns what each says of its channels."""
        parts = x.split([len(part) for part in inputs])
        wanted = PER_CHANNEL.keys() & (self._needs | {"absmax"})  # NaN and Inf show in absmax

        def fill(index: int) -> dict[str, Tensor]:
            part = parts[index].copy_(inputs[index])
            return {name: PER_CHANNEL[name](part) for name in wanted}

        return self._workers.map(fill, range(len(inputs)))

    def _add_gram(self, x: Float[Tensor, "tokens in"]) -> None:
        """Add x^T x to the blocks on and above the diagonal; the rest is their mirror."""
        size, first = x.shape[1], self._gram is None
        gram = torch.empty(size, size) if self._gram is None else self._gram

        def add_rows(start: int) -> None:
            block = gram[start : start + GRAM_ROWS, start:]
            product = x[:, start : start + GRAM_ROWS].T @ x[:, start:]
            block.copy_(product) if first else block.add_(product)

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
        return self._rest.merge(Stats(gram=self._gram))


def _require_finite(absmax: Float[Tensor, " in"]) -> None:
    if not bool(absmax.isfinite().all()):
        channel = int((~absmax.isfinite()).nonzero()[0])
        raise NumericalError(f"the input holds NaN or Inf (channel {channel}) on calibration data")


def observe(
    inputs: Sequence[Float[Tensor, "_ in"]], needs: frozenset[str], workers: Mapper
) -> Stats:
    """The Stats of inputs that are all at hand."""
    collector = Collector(needs, workers)
    collector.add(inputs)
    return collector.stats()
