"""Sums over calibration tokens, cut into tasks that do not depend on the number of threads."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from pennyweight.core import NumericalError, Stats

GRAM_ROWS = 1024  # rows of the Gram matrix per task: enough tasks to share, products still large


@runtime_checkable
class Mapper(Protocol):
    def map(self, task, items) -> list: ...


def observe(inputs: list[Float[Tensor, "_ in"]], needs: frozenset[str], workers: Mapper) -> Stats:
    """The Stats of these inputs (fields named in `needs`); add shards of data up with `merge`.

    Sums are float32. Raises NumericalError if an input is NaN or Inf.
    """
    if not inputs:
        return Stats()
    x = torch.cat(inputs).float()
    absmax = x.abs().amax(0) if len(x) else x.new_zeros(x.shape[1])
    if not bool(absmax.isfinite().all()):
        channel = int((~absmax.isfinite()).nonzero()[0])
        raise NumericalError(f"the input holds NaN or Inf (channel {channel}) on calibration data")
    return Stats(
        tokens=len(x),
        gram=gram(x, workers) if "gram" in needs else None,
        absmax=absmax if "absmax" in needs else None,
    )


def gram(x: Float[Tensor, "tokens in"], workers: Mapper) -> Float[Tensor, "in in"]:
    """x^T x; only the blocks on and above the diagonal are multiplied, the rest is their mirror."""
    size = x.shape[1]
    out = torch.empty(size, size)

    def upper(start: int) -> None:
        stop = min(start + GRAM_ROWS, size)
        torch.mm(x[:, start:stop].T, x[:, start:], out=out[start:stop, start:])

    def mirror(start: int) -> None:
        stop = min(start + GRAM_ROWS, size)
        out[stop:, start:stop] = out[start:stop, stop:].T

    starts = range(0, size, GRAM_ROWS)
    workers.map(upper, starts)
    workers.map(mirror, starts)
    return out
