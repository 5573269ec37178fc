"""Measure it: one unit at a time in the scheme, everything else untouched."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from pennyweight.study.sensitivity.estimators.base import Bench, Estimate, Wanted, estimator


@estimator("direct")
@dataclass(frozen=True, kw_only=True)
class Direct:
    """Mean KL from the untouched model with this unit alone in the scheme, with its interval."""

    together: ClassVar[bool] = False
    source: ClassVar[str] = "the definition; no paper"
    cost: ClassVar[str] = "one forward pass for each unit and scheme"

    def __call__(self, bench: Bench, wanted: Wanted) -> Iterator[Estimate]:
        found = bench.measure([dict.fromkeys(unit.tensors, scheme) for unit, scheme in wanted])
        for (unit, scheme), measured in zip(wanted, found, strict=True):
            yield Estimate.of(unit, scheme, measured.found.kl, measured.made)
