"""The smallest set: enough, none of it to spare, and found in few trials."""

import math

from hypothesis import given
from hypothesis import strategies as st

from pennyweight.evaluate import Interval
from pennyweight.study.diagnosis.cure import by_gain, smallest_cure

NAMES = tuple("abcdefghijklmnop")


def additive(costs: dict[str, float], wide: float = 0.0, seen: list | None = None):
    """The loss of a model in which every part costs so much, with intervals of this half width."""

    def measure(restored: frozenset[str]) -> Interval:
        if seen is not None:
            seen.append(restored)
        value = float(sum(cost for name, cost in costs.items() if name not in restored))
        return Interval(low=value - wide, value=value, high=value + wide)

    return measure


def order_of(costs: dict[str, float]) -> tuple[str, ...]:
    whole = sum(costs.values())
    return by_gain(whole, {name: whole - cost for name, cost in costs.items()})


def test_a_hand_made_model():
    costs = dict(zip("abcd", (1.0, 8.0, 2.0, 4.0), strict=True))
    assert order_of(costs) == ("b", "d", "c", "a")
    cure = smallest_cure(order_of(costs), additive(costs), 3.0)
    assert cure.parts == ("b", "d")
    assert (cure.loss.value, cure.without_last.value) == (3.0, 7.0)
    # an interval that reaches over the limit is not enough: what is left must be under 2.5
    assert smallest_cure(order_of(costs), additive(costs, wide=0.5), 3.0).parts == ("b", "d", "c")


def test_nothing_and_never():
    costs = {"a": 1.0, "b": 2.0}
    nothing = smallest_cure(("b", "a"), additive(costs), 3.0)
    assert (nothing.parts, nothing.loss.value, nothing.without_last) == ((), 3.0, None)
    never = smallest_cure(("b", "a"), additive(costs | {"outside": 5.0}), 3.0)
    assert (never.parts, never.loss.value) == (None, 5.0)


def test_a_part_that_another_makes_needless_is_left_out():
    """Restoring c does all that restoring a and b does; the order has it last."""
    measure = lambda restored: Interval(low=0.0, value=0.0, high=0.0 if "c" in restored else 1.0)
    assert smallest_cure(("a", "b", "c"), measure, 0.5).parts == ("c",)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=16), st.integers(0, 200))
def test_is_as_small_as_can_be_where_costs_add_up(costs, limit):
    named = {name: float(cost) for name, cost in zip(NAMES, costs, strict=False)}
    seen: list[frozenset[str]] = []
    cure = smallest_cure(order_of(named), additive(named, seen=seen), float(limit))
    # oracle: take the costliest until what is left is within the limit
    left, count = sorted(costs), 0
    while sum(left) > limit:
        left.pop()
        count += 1
    assert cure.parts is not None and len(cure.parts) == count
    assert cure.loss.value <= limit and (count == 0 or cure.without_last.value > limit)
    assert len(seen) <= math.ceil(math.log2(len(costs) + 1)) + count + 2
    assert len(set(seen)) == len(seen)  # nothing is measured twice
