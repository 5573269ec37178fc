"""What each unit of a model loses under each scheme: a table that was measured once and is kept in
a file, apart from the plans that are made from it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pennyweight.core import CheckpointError, NumericalError
from pennyweight.core.fields import first_fault
from pennyweight.formats.schemes import UNTOUCHED
from pennyweight.model.writer import write_text

VERSION = 1  # of the file; one of another version is refused


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What is lost by storing a unit in a scheme, and what storing it takes."""

    value: float  # in the unit of the table's metric
    lower: float | None  # ends of the 95 % interval; None where the estimator knows none
    upper: float | None
    stored_bits: int  # codes, scales of every level, zero points, tables, kept weights, factors


@dataclass(frozen=True, kw_only=True)
class UnitLoss:
    """A unit and its loss under each scheme. A scheme it cannot take (groups do not divide a row)
    is not among `options`; W16A16, which leaves it as it is and loses nothing, always is."""

    name: str
    kind: str  # what the unit is: q_proj, q_proj+k_proj+v_proj, layer, experts, ...
    tensors: tuple[str, ...]  # in the checkpoint; all get the scheme of the unit
    parameters: int
    options: Mapping[str, Loss]


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """The table of one model, quantizer and text."""

    model: str
    fingerprint: str  # of the checkpoint that was measured
    data: str  # SHA-256 of the token ids that it was measured on
    quantizer: str
    estimator: str
    granularity: str  # see study.units
    metric: str = "kl_nats"  # mean over tokens of KL(reference || model); additive over units
    settings: Mapping[str, Any] = field(default_factory=dict)  # all that decided the numbers
    units: tuple[UnitLoss, ...] = ()
    version: int = VERSION

    @cached_property
    def by_name(self) -> dict[str, UnitLoss]:
        return {unit.name: unit for unit in self.units}

    @property
    def schemes(self) -> tuple[str, ...]:
        """Every scheme that some unit can take, in the order of the first unit that has it."""
        return tuple(dict.fromkeys(name for unit in self.units for name in unit.options))

    @property
    def parameters(self) -> int:
        return sum(unit.parameters for unit in self.units)

    def require_model(self, fingerprint: str, where: str) -> None:
        """Raises CheckpointError unless the table is of the checkpoint with this fingerprint."""
        if self.fingerprint != fingerprint:
            raise CheckpointError(
                f"{where}: sensitivities were measured on other weights or another config "
                f"({self.model}); run `pennyweight sense` on this model"
            )

    def dump(self, path: str | Path) -> None:
        """Write the file, whole or not at all."""
        text = json.dumps(asdict(self), indent=1, sort_keys=True, allow_nan=False)
        write_text(Path(path), text + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Sensitivity:
        """Raises CheckpointError if the file is none of this version, or holds what no table
        can."""
        try:
            data = json.loads(Path(path).read_bytes())
        except FileNotFoundError:
            raise CheckpointError(
                f"{path}: no such file; `pennyweight sense MODEL -o {path}` makes it"
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: not a sensitivity file: {error}") from None
        version = data.get("version") if isinstance(data, dict) else None
        if version != VERSION:
            raise CheckpointError(
                f"{path}: expected a sensitivity file of version {VERSION}, found version "
                f"{version!r:.40}; repeat `pennyweight sense` with this pennyweight"
            )
        return _checked(_typed(data, path), str(path))


_ADAPTER = TypeAdapter(Sensitivity)


def _typed(data: Any, path: str | Path) -> Sensitivity:
    try:
        return _ADAPTER.validate_python(data)
    except ValidationError as error:
        fault = first_fault(error)
        raise CheckpointError(
            f"{path}: {fault.place}: {fault.message}, found {fault.found!r:.80}"
        ) from None


def _checked(table: Sensitivity, where: str) -> Sensitivity:
    """What the types leave open. Raises CheckpointError or NumericalError naming the unit."""
    if not table.units:
        raise CheckpointError(f"{where}: units: expected at least one")
    owners: dict[str, str] = {}
    for unit in table.units:
        for tensor in unit.tensors:
            if other := owners.get(tensor):
                raise CheckpointError(f"{where}: {tensor} is in two units, {other} and {unit.name}")
            owners[tensor] = unit.name
        if UNTOUCHED not in unit.options:
            raise CheckpointError(f"{where}: {unit.name}: options: {UNTOUCHED} is missing")
        for scheme, loss in unit.options.items():
            check_finite(loss.value, where, unit.name, scheme)
            if unit.parameters < 0 or loss.stored_bits < 0:
                raise CheckpointError(f"{where}: {unit.name}: {scheme}: a size below 0")
    if len(table.by_name) != len(table.units):
        raise CheckpointError(f"{where}: two units have one name")
    return replace(table)


def check_finite(value: float, who: str, unit: str, scheme: str) -> float:
    """`value`. Raises NumericalError naming unit and scheme if it is NaN or Inf."""
    if not math.isfinite(value):
        raise NumericalError(
            f"{who}: {unit}: the loss under {scheme} is {value}, expected a finite number; leave "
            "this scheme out, or use another estimator"
        )
    return value
