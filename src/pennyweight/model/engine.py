"""Who carries out independent work: this process, or others.

`workers` shares work among the threads of one process; an engine shares it among processes, on this
machine or on many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar, runtime_checkable

from pennyweight.core import RecipeError, UnknownNameError

Item = TypeVar("Item")
Result = TypeVar("Result")
ENGINES = ("local", "ray")


@runtime_checkable
class Engine(Protocol):
    """Carries out independent work. No result may depend on who computed it, or on how many did."""

    @property
    def is_local(self) -> bool:
        """Whether it is this process, one item after the other: cutting work up gains nothing."""
        ...

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

    is_local = True

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        return map(function, items)

    def close(self) -> None:
        pass


def threads_of(engine: Engine, threads: int | None) -> int | None:
    """Of each process: all cores of this one, and of a worker, which has one CPU, one thread."""
    return threads or (None if engine.is_local else 1)


def make_engine(name: str, *, address: str | None = None, workers: int | None = None) -> Engine:
    """address: of a Ray cluster that runs. workers: processes, by default one for each CPU of it.

    Raises UnknownNameError for a name that there is not, RecipeError for options that are not of
    this engine.
    """
    if name == "ray":
        from pennyweight.model.engine_ray import RayEngine

        return RayEngine(address=address, workers=workers)
    if name != "local":
        raise UnknownNameError(f"unknown engine {name!r:.40}; known: {', '.join(ENGINES)}")
    if address is not None or workers is not None:
        raise RecipeError(
            "--address and --workers are of a Ray cluster, and the engine is local; add "
            "--engine ray, or use --threads for this process"
        )
    return Local()
