"""How pure code asks for parallelism without knowing of threads."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Mapper(Protocol):
    """Carries out independent tasks; `model.workers.Workers` spreads them over threads."""

    def map(self, task: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        """The results in the order of the items."""
        ...


class Serial:
    """One task after the other, in the caller's thread."""

    def map(self, task: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        return [task(item) for item in items]
