"""Measure it where it will stand: one unit in the scheme, with all other units already in one.

What a unit loses depends on what the others are: errors meet errors that they add to or cancel, and
a model that is already far off is moved less by one more error (KL saturates). A measurement in an
untouched model has none of that, one around a base has it to first order. The base may be a plan
that was made before, so that a plan can be improved around itself.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from pennyweight.core import RecipeError
from pennyweight.core.record import record_key
from pennyweight.formats.schemes import UNTOUCHED
from pennyweight.study.bank import Bank
from pennyweight.study.sensitivity.estimators.base import (
    Bench,
    Estimate,
    Wanted,
    by_unit,
    estimator,
)


@estimator("in_context")
@dataclass(frozen=True, kw_only=True)
class InContext:
    """KL with the others in the base and this unit in the scheme, less the same with this unit
    untouched; with the interval of the difference, paired over the same documents.

    It may be below 0: errors can cancel. The values of one scheme do not add up to what all units
    lose in it together, but to the difference that they make around the base.
    """

    base: str | Mapping[str, str] = ""
    """The schemes of the others. One name, or several with commas between of which each linear
    takes the first that it can; or a scheme for each linear. If nothing is given each linear is in
    the smallest of the table's schemes that it can take."""

    together: ClassVar[bool] = False
    source: ClassVar[str] = "the definition, around a base; no paper"
    cost: ClassVar[str] = "one forward pass for each unit and scheme, and one more for each unit"

    def __call__(self, bench: Bench, wanted: Wanted) -> Iterator[Estimate]:
        """Raises RecipeError for a base that the bank does not hold or some linear cannot take."""
        base, grouped = self.mix(bench.bank), by_unit(wanted)
        order = [(unit, name) for unit, schemes in grouped for name in (UNTOUCHED, *schemes)]
        found = bench.measure(
            [{**base, **dict.fromkeys(unit.tensors, scheme)} for unit, scheme in order]
        )
        for unit, schemes in grouped:
            without = next(found).found
            for scheme in schemes:
                measured = next(found)
                difference = measured.found.kl_difference(without)
                yield Estimate.of(unit, scheme, difference, measured.made)

    def context(self, bench: Bench) -> str:
        """A digest of the base: the same unit around another base is another measurement."""
        mix = self.mix(bench.bank)
        held = {scheme: bench.bank.identity(scheme) for scheme in set(mix.values())}
        return record_key({"base": mix, "held": held})

    def mix(self, bank: Bank) -> dict[str, str]:
        """tensor -> scheme of the base."""
        tensors = bank.survey.by_tensor
        if isinstance(self.base, Mapping):
            if odd := set(tensors) ^ set(self.base):
                raise RecipeError(
                    f"in_context: base: expected a scheme for each linear of {bank.path} and for "
                    f"nothing else; found one too many or too few: {min(odd)}"
                )
            return {tensor: _first(bank, tensor, [self.base[tensor]]) for tensor in tensors}
        named = [name.strip() for name in self.base.split(",") if name.strip()]
        if named:
            return {tensor: _first(bank, tensor, named) for tensor in tensors}
        return {tensor: _smallest(bank, tensor) for tensor in tensors}


def _first(bank: Bank, tensor: str, names: list[str]) -> str:
    for name in names:
        if name != UNTOUCHED and name not in bank.schemes:
            raise RecipeError(
                f"in_context: base: {name} is not among the schemes of the table, which are "
                f"{', '.join(bank.schemes)}"
            )
    found = next((name for name in names if bank.takes(tensor, name)), None)
    if found is None:
        raise RecipeError(
            f"in_context: base: {tensor} cannot take {', '.join(names)}; name another scheme for "
            "it behind a comma"
        )
    return found


def _smallest(bank: Bank, tensor: str) -> str:
    """What takes no scheme of the table stays as it is."""
    fitting = [scheme for scheme in bank.schemes if bank.takes(tensor, scheme)]
    return min(fitting, key=lambda s: bank.stored_bits(tensor, s), default=UNTOUCHED)
