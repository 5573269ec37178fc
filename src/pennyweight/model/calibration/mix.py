"""Several sources in given shares: `a.txt*0.7+stdlib*0.3`."""

from __future__ import annotations

import math
from pathlib import Path

from pennyweight.core import DataError


def parse_mix(text: str) -> dict[str, float] | None:
    """Source -> its share, which add up to 1; None if the text is no mix.

    Every part of a mix has a weight. What exists as a file is a file, whatever its name. Raises
    DataError for weights that are no numbers, not above zero, or missing.
    """
    if "*" not in text or Path(text).is_file():
        return None
    weights: dict[str, float] = {}
    for part in text.split("+"):
        source, star, number = part.rpartition("*")
        source = source.strip()
        if not star or not source:
            raise DataError(
                f"{text}: {part!r} has no weight; a mix is written a.txt*0.7+stdlib*0.3"
            )
        if source in weights:
            raise DataError(f"{text}: {source!r} is named twice; add its weights up")
        weights[source] = _weight(number, text)
    total = sum(weights.values())
    return {source: weight / total for source, weight in weights.items()}


def _weight(number: str, text: str) -> float:
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not (math.isfinite(weight) and weight > 0):
        raise DataError(f"{text}: weight {number.strip()!r}: expected a number above 0")
    return weight


def apportion(samples: int, shares: dict[str, float], text: str) -> dict[str, int]:
    """How many of the samples each source gives, by the largest remainder; ties go to the first.

    Raises DataError if a source would give none.
    """
    exact = {source: samples * share for source, share in shares.items()}
    counts = {source: math.floor(value) for source, value in exact.items()}
    order = sorted(exact, key=lambda source: counts[source] - exact[source])
    for source in order[: samples - sum(counts.values())]:
        counts[source] += 1
    if none := [source for source, count in counts.items() if count == 0]:
        raise DataError(
            f"{text}: of {samples} samples {none[0]!r} would give none; ask for more samples"
        )
    return counts
