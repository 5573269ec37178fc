"""Units whose scheme the user has chosen already."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pennyweight.core import RecipeError
from pennyweight.formats.schemes import UNTOUCHED, parse_scheme
from pennyweight.study.sensitivity.table import Sensitivity


@dataclass(frozen=True, kw_only=True)
class Pin:
    """Every unit with a tensor that matches the glob gets the scheme."""

    pattern: str
    scheme: str


def parse_pin(text: str) -> Pin:
    """The pin of `*.down_proj.weight=W8A16_g128`. Raises RecipeError, UnknownNameError."""
    pattern, equals, scheme = text.partition("=")
    if not (equals and pattern.strip() and scheme.strip()):
        raise RecipeError(f"--pin {text!r:.80}: expected PATTERN=SCHEME, as *.down_proj.*=W8A16")
    if scheme.strip() != UNTOUCHED:
        parse_scheme(scheme.strip())
    return Pin(pattern=pattern.strip(), scheme=scheme.strip())


def pinned(pins: Sequence[Pin], table: Sensitivity) -> Mapping[str, str]:
    """Unit -> scheme.

    Raises RecipeError for a pattern that matches nothing, two pins that contradict each other on a
    unit, and a scheme that a unit cannot take or that was not measured for it.
    """
    found: dict[str, Pin] = {}
    for pin in pins:
        units = [
            unit
            for unit in table.units
            if any(fnmatch.fnmatchcase(name, pin.pattern) for name in (unit.name, *unit.tensors))
        ]
        if not units:
            raise RecipeError(
                f"--pin {pin.pattern}: matches no tensor; names look like "
                f"{table.units[0].tensors[0]!r}"
            )
        for unit in units:
            other = found.setdefault(unit.name, pin)
            if other.scheme != pin.scheme:
                raise RecipeError(
                    f"{unit.name}: pinned to {other.scheme} by {other.pattern!r} and to "
                    f"{pin.scheme} by {pin.pattern!r}; its tensors get one scheme"
                )
            if pin.scheme not in unit.options:
                raise RecipeError(
                    f"--pin {pin.pattern}={pin.scheme}: {unit.name} was not measured in it, or "
                    f"cannot take it; it has {', '.join(unit.options)}"
                )
    return {name: pin.scheme for name, pin in found.items()}
