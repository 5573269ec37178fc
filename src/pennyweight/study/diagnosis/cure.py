"""The fewest parts whose restoration brings a model back within a target.

Parts are put in the order of what restoring each of them alone gains. How many of them it takes is
found by bisection, and each is then left out once to see whether the others do. Every answer is
measured: a set is good enough when the upper end of its interval is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pennyweight.evaluate import Interval

Measure = Callable[[frozenset[str]], Interval]  # the loss with these parts restored


@dataclass(frozen=True, kw_only=True)
class Cure:
    """`parts` is None if restoring all of them is not enough; `loss` is then what that leaves."""

    parts: tuple[str, ...] | None
    loss: Interval
    without_last: Interval | None  # the loss if the last of `parts` is not restored either


def smallest_cure(order: Sequence[str], measure: Measure, limit: float) -> Cure:
    """order: parts, those that gain most first. About log2(parts) + the size of the set trials."""
    seen: dict[frozenset[str], Interval] = {}

    def loss(chosen: Sequence[str]) -> Interval:
        key = frozenset(chosen)
        if key not in seen:
            seen[key] = measure(key)
        return seen[key]

    def enough(chosen: Sequence[str]) -> bool:
        return loss(chosen).high <= limit

    if not enough(order):
        return Cure(parts=None, loss=loss(order), without_last=None)
    chosen = list(order[: _fewest(len(order), lambda count: enough(order[:count]))])
    for name in reversed(list(chosen)):
        without = [each for each in chosen if each != name]
        if enough(without):
            chosen = without
    return Cure(
        parts=tuple(chosen), loss=loss(chosen),
        without_last=loss(chosen[:-1]) if chosen else None,
    )  # fmt: skip


def _fewest(most: int, enough: Callable[[int], bool]) -> int:
    """A count that is enough while one less is not, or 0; `most` is known to be enough."""
    low, high = -1, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def by_gain(whole: float, restored: Mapping[str, float]) -> tuple[str, ...]:
    """Parts by what restoring each alone gains, the largest first; ties as they come."""
    return tuple(sorted(restored, key=lambda name: restored[name] - whole))
