"""What the pipeline noted anyway: how far off a layer's output is on the calibration text.

Choosing by the error of a layer's output is MoFQ, Zhang et al. 2023,
https://arxiv.org/abs/2305.12356, section 4, for widths that also round inputs. It says nothing of
what the rest of the model makes of the error.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from pennyweight.core import UnsupportedError
from pennyweight.study.sensitivity.estimators.base import (
    Bench,
    Estimate,
    Wanted,
    anchored,
    estimator,
    require_weight_only,
)
from pennyweight.study.units import Unit


@estimator("output_error")
@dataclass(frozen=True, kw_only=True)
class OutputError:
    """Squared error over squared signal of each linear's output, summed over the unit."""

    anchor: bool = True  # scaled so that they sum to the KL of all units together, in each scheme
    together: ClassVar[bool] = True
    source: ClassVar[str] = "Zhang et al. 2023, arXiv:2305.12356"
    cost: ClassVar[str] = "one forward pass for each scheme; the quantizer has observed the inputs"

    def __call__(self, bench: Bench, wanted: Wanted) -> Iterator[Estimate]:
        """Raises UnsupportedError if the quantizer observed nothing."""
        require_weight_only(bench, wanted, "output_error")
        found = (
            Estimate(unit=unit, scheme=scheme, value=_error(bench, unit, scheme))
            for unit, scheme in wanted
        )
        yield from anchored(bench, found) if self.anchor else found


def _error(bench: Bench, unit: Unit, scheme: str) -> float:
    facts = [bench.bank.fact(tensor, scheme) for tensor in unit.tensors]
    if any(fact["metric"] != "output" for fact in facts):
        raise UnsupportedError(
            f"output_error: {bench.bank.ingredients.quantizer} observes no inputs, so that the "
            f"output of {unit.name} is not known; use a quantizer that does, such as gptq, or the "
            "estimator fisher"
        )
    return sum(fact["loss"] for fact in facts)
