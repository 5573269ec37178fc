"""Which numbers a linear computes with."""

from __future__ import annotations

from dataclasses import dataclass

from pennyweight.core.format import Format


@dataclass(frozen=True, kw_only=True)
class ActivationFormat:
    """How the input of a linear is rounded when it runs.

    dynamic: the scale is taken from each token as it passes; otherwise one scale for the whole
    tensor was fixed at calibration. observed: the field of Stats whose largest value fixes it.
    """

    format: Format
    dynamic: bool = True
    observed: str = "absmax"


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """The formats of a linear's weight and input. `name` parses back to the same scheme."""

    name: str
    weight: Format
    activation: ActivationFormat | None = None
