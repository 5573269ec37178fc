"""Many mixes measured, by this process or by those of an engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

from pennyweight.records import Clock, provenance
from pennyweight.study.trial import Trial, Trials

Opening = Callable[[], AbstractContextManager[Trials]]


@dataclass(frozen=True, kw_only=True)
class Measured:
    trial: Trial
    made: dict[str, Any]  # provenance, of the process that measured it


class Gauge:
    """Mix (tensor -> scheme) -> Measured. Sent to another process it leaves the trials behind, and
    opens others when it is first called there."""

    def __init__(self, trials: Trials | None, opening: Opening | None = None) -> None:
        """opening: how another process comes by the same trials; it must be possible to send it."""
        self._trials, self._opening, self._open = trials, opening, ExitStack()

    def __call__(self, mix: Mapping[str, str]) -> Measured:
        clock = Clock()
        if self._trials is None:
            assert self._opening is not None, "who sends it says how it is opened"
            self._trials = self._open.enter_context(self._opening())
        return Measured(trial=self._trials.measure(mix), made=provenance(clock))

    def __reduce__(self) -> tuple[Any, ...]:
        return Gauge, (None, self._opening)
