"""The linearity theorem: the loss is proportional to each layer's relative squared error.

Malinovskii et al. 2024, https://arxiv.org/abs/2411.17525 (HIGGS), section 3: for small errors that
are as if random, E[loss] = loss of the model + sum over layers of a_l t_l^2, where t_l^2 =
|W' - W|^2 / |W|^2. The coefficient a_l does not depend on the scheme: it is found by adding
Gaussian noise of known size to one layer.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pennyweight.core import RecipeError
from pennyweight.model.calibration.base import seeded
from pennyweight.study.bank import Bank
from pennyweight.study.sensitivity.estimators.base import (
    Bench,
    Estimate,
    Wanted,
    estimator,
    require_weight_only,
)
from pennyweight.study.units import Unit


@estimator("linearity")
@dataclass(frozen=True, kw_only=True)
class Linearity:
    """A coefficient for each unit, from noise, times the squared error of its stored weights."""

    noise: float = 0.01  # t^2 of the noise: between what 4 and 3 bits in groups of 64 leave
    share: float = 0.25  # of the documents, on which the coefficient is found
    together: ClassVar[bool] = False
    source: ClassVar[str] = "Malinovskii et al. 2024, arXiv:2411.17525"
    cost: ClassVar[str] = "`share` of a forward pass for each unit, whatever the schemes"

    def __call__(self, bench: Bench, wanted: Wanted) -> Iterator[Estimate]:
        """Raises RecipeError for options out of range."""
        if not (0 < self.noise < 1 and 0 < self.share <= 1):
            raise RecipeError(
                f"linearity: expected noise above 0 and below 1, and share above 0 up to 1; found "
                f"{self.noise} and {self.share}"
            )
        require_weight_only(bench, wanted, "linearity")
        coefficients: dict[str, float] = {}
        for unit, scheme in wanted:
            if unit.name not in coefficients:
                coefficients[unit.name] = self._coefficient(bench, unit)
            error = relative_error(bench.bank, unit, scheme)
            yield Estimate(unit=unit, scheme=scheme, value=coefficients[unit.name] * error)

    def _coefficient(self, bench: Bench, unit: Unit) -> float:
        """Nats of KL for each unit of t^2."""
        trials = bench.trials
        trials.swaps.put({})
        for tensor in unit.tensors:
            weight = bench.bank.weight(tensor, "W16A16")
            trials.swaps.put_weight(tensor, weight + self._noise(weight, tensor, bench.seed))
        documents = max(1, round(self.share * len(trials.texts.tokens)))
        before = trials.passes
        kl = trials.score({}, documents=documents).kl.value
        bench.spent.forward += (trials.passes - before) * trials.texts.scored
        return kl / self.noise

    def _noise(self, weight: Tensor, tensor: str, seed: int) -> Tensor:
        """Of relative squared size `noise` in expectation."""
        noise = torch.randn(weight.shape, generator=seeded(seed, tensor))
        return noise * (self.noise**0.5 * weight.norm() / weight.numel() ** 0.5)


def relative_error(bank: Bank, unit: Unit, scheme: str) -> float:
    """t^2, the mean over the unit's tensors: the noise has the same t in all of them."""
    ratios = []
    for tensor in unit.tensors:
        weight = bank.weight(tensor, "W16A16")
        error = (bank.weight(tensor, scheme) - weight).double().square().sum()
        ratios.append(float(error / weight.double().square().sum()))
    return sum(ratios) / len(ratios)
