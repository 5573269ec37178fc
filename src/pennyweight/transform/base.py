"""What a rewrite is that leaves the function unchanged: channels scaled down, and up again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from pennyweight.core import Registry, Scheme, Stats


@dataclass(frozen=True, kw_only=True)
class Consumers:
    """Linears that read one tensor, and what was seen of it."""

    weights: tuple[Float[Tensor, "_ in"], ...]
    schemes: tuple[Scheme | None, ...]  # None for a linear that stays as it is
    stats: Stats
    inputs: Float[Tensor, "tokens in"]  # a few of the inputs themselves


@runtime_checkable
class Transform(Protocol):
    """Chooses a scale per channel; the pipeline divides the input by it and multiplies the weights.

    The pipeline proves on the block that its output did not move, and drops a scale under which the
    linears' output error is no smaller than without it.
    """

    needs: ClassVar[frozenset[str]]  # the fields of Stats it reads
    source: ClassVar[str]  # where the method is described

    def __call__(self, consumers: Consumers) -> Float[Tensor, " in"]:
        """Positive factors; 1 leaves a channel alone."""
        ...


TRANSFORMS: Registry[type[Transform]] = Registry("transform")
transform = TRANSFORMS.register
