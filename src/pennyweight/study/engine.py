"""Who carries out the trials of a study: this process, or others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

from pennyweight.core import UnknownNameError

Item = TypeVar("Item")
Result = TypeVar("Result")
ENGINES = ("local", "ray")


@runtime_checkable
class Engine(Protocol):
    """Carries out independent work. No result may depend on who computed it, or on how many did."""

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """The results in the order of the items, each as soon as those before it are there.

        An engine with other processes sends the function to each once. It can keep there what is
        expensive to make, as an object of a class with `__call__` does. The first exception of an
        item is raised, and what is then not done is not done.
        """
        ...

    def close(self) -> None:
        """Let go of other processes. It may be used again."""
        ...


class Local:
    """One item after the other, in this process."""

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        return map(function, items)

    def close(self) -> None:
        pass


def make_engine(name: str, **options: Any) -> Engine:
    """Raises UnknownNameError for a name that there is not, and what the engine raises."""
    if name == "local":
        return Local()
    if name == "ray":
        from pennyweight.study.engine_ray import RayEngine

        return RayEngine(**options)
    raise UnknownNameError(f"unknown engine {name!r:.40}; known: {', '.join(ENGINES)}")
