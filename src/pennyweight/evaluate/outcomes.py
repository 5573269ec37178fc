"""What a model scored on one task, item by item."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True, kw_only=True)
class TaskScores:
    """Scores of one model on the items of one task, in their order."""

    task: str
    metric: str  # `acc_norm`, `acc`, `exact_match`, ...: what `values` are, each 0 to 1
    values: tuple[float, ...]
    items: str = ""  # SHA-256 of items and gold labels: equal for equal questions
    chance: float | None = None  # the mean score of guessing; None: unknown
    metrics: Mapping[str, float] | None = None  # every metric of the task, over all items
    shots: int = 0  # examples before each question
    cut: int = 0  # questions whose beginning did not fit the model's context

    @cached_property
    def binary(self) -> bool:
        """Every item is right or wrong."""
        return all(value in (0.0, 1.0) for value in self.values)
