"""Numbers as readers want them: few digits, a unit, an interval."""

from __future__ import annotations

import html
import math
from pathlib import PurePath

from pennyweight.core.record import Record
from pennyweight.evaluate import Interval

UNKNOWN = "not known"
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float | None, digits: int = 3) -> str:
    """Significant digits, without the exponent where a reader does not need one."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if 10**digits <= abs(value) < 1e7:
        return f"{value:,.0f}"
    return written(value, f".{digits}g")


def written(value: float, form: str) -> str:
    """As Python formats it, but a power of ten as people write it: `6.9·10⁻⁵`."""
    mantissa, e, exponent = f"{value:{form}}".partition("e")
    return f"{mantissa}·10{str(int(exponent)).translate(RAISED)}" if e else mantissa


def interval(found: Interval, form: str) -> str:
    """`1.13 to 1.48`; empty if there is none."""
    if not (math.isfinite(found.low) and math.isfinite(found.high)):
        return ""
    return f"{written(found.low, form)} to {written(found.high, form)}"


def shown(found: Interval, form: str) -> str:
    """The value with its interval in parentheses."""
    if not math.isfinite(found.value):
        return UNKNOWN
    ends = interval(found, form)
    return written(found.value, form) + (f" ({ends})" if ends else "")


def record_interval(record: Record) -> Interval:
    """Ends that are not known are NaN."""
    low, high = (math.nan if x is None else x for x in (record.lower, record.upper))
    return Interval(low=low, value=record.value, high=high)


def short(model: str) -> str:
    """The last name of a path; a Hub id, or `pylm`, as it is. Where a model comes from is told in
    full at the end of the page."""
    return PurePath(model).name or model if model.startswith((".", "/", "~")) else model


def label(name: str) -> str:
    """A name for a plot, whose texts may hold tags."""
    return html.escape(name, quote=False)


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
