"""What each unit costs under each scheme: bytes, parameters in high precision, or measured numbers.

Whatever adds up over units can be a cost. The quantization ratio of
https://arxiv.org/abs/2410.06722, section 3 (parameters in low precision over all that are
considered) is one: the parameters that are *not* in low precision.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pennyweight.core import RecipeError
from pennyweight.core.fields import first_fault
from pennyweight.deploy.kernel_times import LeftOut
from pennyweight.formats.schemes import UNTOUCHED, parse_scheme
from pennyweight.study.sensitivity.table import UnitLoss

SECONDS = "s"
LOW_BITS = 4  # a scheme of so many bits or fewer is low precision


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What is to be small, and its unit of measure."""

    name: str  # size, ratio, latency, ...
    unit: str  # bytes, parameters, s
    of: Callable[[UnitLoss, str], float]  # (unit, scheme) -> cost
    schemes: tuple[str, ...] = ()  # those of a file, in its order; none: every scheme has a cost
    offers: Callable[[UnitLoss, str], bool] = lambda unit, scheme: True  # if not: no kernel for it


def size_costs() -> Costs:
    """Bytes of everything stored: codes, scales of every level, zero points, tables, factors."""
    return Costs(
        name="size", unit="bytes", of=lambda unit, scheme: unit.options[scheme].stored_bits / 8
    )


def ratio_costs(low_bits: int = LOW_BITS) -> Costs:
    """Parameters that stay above `low_bits` bits; least is the highest quantization ratio."""

    def high(unit: UnitLoss, scheme: str) -> float:
        return 0.0 if is_low(scheme, low_bits) else float(unit.parameters)

    return Costs(name="ratio", unit="parameters", of=high)


def is_low(scheme: str, low_bits: int = LOW_BITS) -> bool:
    return code_bits(scheme) <= low_bits


def code_bits(scheme: str) -> float:
    """Bits of the codes of one weight, without scales; 16 for what is left as it is."""
    if scheme == UNTOUCHED:
        return 16.0
    weight = parse_scheme(scheme).weight
    return weight.grid.bits / getattr(weight.grid, "dim", 1)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One measured number of a cost file."""

    shape: tuple[int, int]  # out, in; of one linear, or of all that a unit fuses (outs summed)
    scheme: str
    value: float


@dataclass(frozen=True, kw_only=True)
class CostFile:
    """A file of measured costs, TOML or JSON: `name`, `unit`, and a list `cost`.

    What else `pennyweight costs` writes (machine, versions, tokens, threads) is for people.
    """

    unit: str
    cost: tuple[Cost, ...]
    name: str = "latency"
    left_out: tuple[LeftOut, ...] = ()


def measured_costs(path: Path, shapes: Mapping[str, tuple[int, int]]) -> Costs:
    """The costs of a file; shapes: tensor -> (out, in).

    A unit of several tensors costs what one product of all their rows does where the file has that
    shape, else the sum of its tensors. Raises RecipeError for a file or shape that is not there.
    """
    file = _read(path)
    table = {(c.shape, c.scheme): c.value for c in file.cost}
    if len(table) < len(file.cost):
        raise RecipeError(f"{path}: cost: a shape and scheme stand there twice")
    without = frozenset((one.shape, one.scheme) for one in file.left_out if one.shape)
    found = _Table(path=path, values=table, without=without, shapes=shapes)
    known = tuple(dict.fromkeys(cost.scheme for cost in file.cost))
    return Costs(name=file.name, unit=file.unit, of=found.of, schemes=known, offers=found.offers)


@dataclass(frozen=True, kw_only=True)
class _Table:
    """The numbers of a file, for units of several tensors."""

    path: Path
    values: Mapping[tuple[tuple[int, int], str], float]
    without: frozenset[tuple[tuple[int, int], str]]  # no kernel takes these
    shapes: Mapping[str, tuple[int, int]]

    def of(self, unit: UnitLoss, scheme: str) -> float:
        together = self._together(unit, scheme)
        if together is not None:
            return together
        each = [self.shapes[tensor] for tensor in unit.tensors]
        for shape in each:
            if (shape, scheme) not in self.values:
                raise RecipeError(
                    f"{self.path}: no cost for {scheme} of shape {list(shape)} ({unit.name}); "
                    "measure it, or leave the scheme out"
                )
        return math.fsum(self.values[shape, scheme] for shape in each)

    def offers(self, unit: UnitLoss, scheme: str) -> bool:
        """False where the file says that there is no kernel."""
        if self._together(unit, scheme) is not None:
            return True
        return not any((self.shapes[tensor], scheme) in self.without for tensor in unit.tensors)

    def _together(self, unit: UnitLoss, scheme: str) -> float | None:
        """The cost of one product of all rows, where that was measured."""
        each = [self.shapes[tensor] for tensor in unit.tensors]
        if len({cols for _, cols in each}) > 1:
            return None
        return self.values.get(((sum(rows for rows, _ in each), each[0][1]), scheme))


def priced(costs: Costs, per_hour: float) -> Costs:
    """Money for time, at a price per hour. Raises RecipeError if the costs are not in seconds."""
    if costs.unit != SECONDS:
        raise RecipeError(
            f"--price-per-hour: the file holds {costs.name} in {costs.unit}; expected seconds (s)"
        )
    if not (math.isfinite(per_hour) and per_hour > 0):
        raise RecipeError(f"--price-per-hour {per_hour}: expected a number above 0")
    of = lambda unit, scheme: costs.of(unit, scheme) * per_hour / 3600
    return replace(costs, name="cost", unit="currency", of=of)


def _read(path: Path) -> CostFile:
    try:
        text = path.read_text(encoding="utf-8")
        data: Any = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        file = TypeAdapter(CostFile).validate_python(data)
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such file of costs") from None
    except ValidationError as error:
        fault = first_fault(error)
        raise RecipeError(
            f"{path}: {fault.place}: {fault.message}, found {fault.found!r:.60}"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise RecipeError(f"{path}: not a file of costs: {error}") from None
    for cost in file.cost:
        if not (math.isfinite(cost.value) and cost.value >= 0):
            raise RecipeError(
                f"{path}: cost of {cost.scheme} {list(cost.shape)} is {cost.value}; expected 0 or "
                "more"
            )
    return file
