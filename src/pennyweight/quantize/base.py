"""What a rounding algorithm is."""

from typing import ClassVar, Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor

from pennyweight.core import Format, Mapper, Quantized, Registry, Stats


@runtime_checkable
class Quantizer(Protocol):
    """Rows are independent: quantizing a slice of rows gives the slice of the result.

    The pipeline relies on it to solve several linears that share an input at once and to spread
    rows over threads. What does depend on other rows goes into one of the protocols below.
    """

    needs: ClassVar[frozenset[str]]  # the fields of Stats it reads; a property if options decide
    source: ClassVar[str]  # where the method is described

    def __call__(self, weight: Float[Tensor, "out in"], format: Format, stats: Stats) -> Quantized:
        """Choose codes, scale and zero point. Must not modify its arguments."""
        ...


@runtime_checkable
class Prepares(Protocol):
    """A quantizer with work that all rows share, better done once and by all threads."""

    def prepare(self, stats: Stats, workers: Mapper) -> None:
        """Leave the shared result in `stats.derive`; without it the first call makes it."""
        ...


@runtime_checkable
class Selects(Protocol):
    """A quantizer that first chooses weights to keep, looking at the whole tensor."""

    def select(
        self, weight: Float[Tensor, "out in"], format: Format, stats: Stats, workers: Mapper
    ) -> Bool[Tensor, "out in"]:
        """The mask that `__call__` then finds, cut to its rows, in `stats.keep`."""
        ...


@runtime_checkable
class SelectsTogether(Protocol):
    """A quantizer that may choose the weights to keep over several tensors at once, before any of
    them is solved and so before any input is observed."""

    @property
    def scope(self) -> str:
        """One of `saliency.select.WIDE`; anything else is chosen by `Selects`."""
        ...

    @property
    def share(self) -> float:
        """Of all weights in the scope, how many are kept."""
        ...

    def is_blind(self, stats: Stats) -> bool:
        """Whether nothing was observed that a score could be made of; the tensor then makes a
        choice of its own, in `Selects`."""
        ...

    def score(
        self, weight: Float[Tensor, "out in"], format: Format, stats: Stats
    ) -> Float[Tensor, "out in"]:
        """What the weights of all these tensors are ranked by; from the weight and its gradient
        alone."""
        ...


@runtime_checkable
class Finishes(Protocol):
    """A quantizer with a last step over the whole tensor, such as a correction of low rank."""

    def finish(
        self,
        weight: Float[Tensor, "out in"],
        quantized: Quantized,
        format: Format,
        stats: Stats,
        workers: Mapper,
    ) -> Quantized:
        """`quantized` with what the last step adds to it."""
        ...


@runtime_checkable
class Adds(Protocol):
    """A quantizer that stores more than codes, and knows how much before it runs."""

    def added_bytes(self, shape: tuple[int, int], format: Format) -> int:
        """Of kept weights or factors, for a weight [out, in]."""
        ...


@runtime_checkable
class Limited(Protocol):
    """A quantizer that is made for some formats only."""

    def check_format(self, format: Format) -> None:
        """Raises FormatError, saying which formats it is for, if `format` is none of them."""
        ...


@runtime_checkable
class Keeps(Protocol):
    """A quantizer that itself leaves the weights in `stats.keep` out and hands them back as
    Sparse."""

    keeps: ClassVar[bool]


@runtime_checkable
class FallsBack(Protocol):
    """A quantizer that knows what to do where too little was observed; others give way to rtn."""

    @property
    def fallback(self) -> str:
        """What the record calls the stand-in."""
        ...

    def without_data(self) -> Quantizer:
        """What stands in for it; it needs nothing."""
        ...


QUANTIZERS: Registry[type[Quantizer]] = Registry("quantizer")
quantizer = QUANTIZERS.register
