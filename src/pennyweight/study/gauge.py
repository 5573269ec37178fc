"""Many measurements with the same trials, by this process or by those of an engine."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pennyweight.records import Clock, provenance
from pennyweight.study.trial import Trials

Item = TypeVar("Item")
Found = TypeVar("Found")
Opening = Callable[[], AbstractContextManager[Trials]]


@dataclass(frozen=True, kw_only=True)
class Measured(Generic[Found]):
    found: Found
    made: dict[str, Any]  # provenance, of the process that measured it


class Gauge(Generic[Item, Found]):
    """Item -> what a function of trials and item finds. Sent to another process it leaves the
    trials behind, and opens others when it is first called there."""

    def __init__(
        self,
        measure: Callable[[Trials, Item], Found],
        trials: Trials | None,
        opening: Opening | None = None,
    ) -> None:
        """opening: how another process comes by the same trials; it and `measure` must be possible
        to send."""
        self._measure, self._trials, self._opening = measure, trials, opening
        self._open = ExitStack()

    def __call__(self, item: Item) -> Measured[Found]:
        clock = Clock()
        if self._trials is None:
            assert self._opening is not None, "who sends it says how it is opened"
            self._trials = self._open.enter_context(self._opening())
        return Measured(found=self._measure(self._trials, item), made=provenance(clock))

    def __reduce__(self) -> tuple[Any, ...]:
        return Gauge, (self._measure, None, self._opening)
