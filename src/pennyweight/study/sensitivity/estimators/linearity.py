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

from pennyweight.core import RecipeError
from pennyweight.formats.schemes import UNTOUCHED
from pennyweight.model.calibration.base import seeded
from pennyweight.study.bank import Bank
from pennyweight.study.sensitivity.estimators.base import (
    Bench,
    Estimate,
    Wanted,
    by_unit,
    estimator,
    require_weight_only,
)
from pennyweight.study.trial import Trials
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
        grouped, tokens = by_unit(wanted), bench.trials.texts.tokens
        documents = max(1, round(self.share * len(tokens)))
        shakes = [
            Shake(unit.tensors, size=self.noise, documents=documents, seed=bench.seed)
            for unit, _ in grouped
        ]
        found = bench.each(lost_to, shakes)
        for (unit, schemes), measured in zip(grouped, found, strict=True):
            bench.spent.forward += sum(len(each.ids) - 1 for each in tokens[:documents])
            coefficient = measured.found / self.noise  # nats of KL for each unit of t^2
            for scheme in schemes:
                error = relative_error(bench.bank, unit, scheme)
                yield Estimate(
                    unit=unit, scheme=scheme, value=coefficient * error, made=measured.made
                )


@dataclass(frozen=True)
class Shake:
    """Noise on some tensors."""

    tensors: tuple[str, ...]
    size: float  # t^2 in expectation
    documents: int  # on so many, the first ones, it is measured
    seed: int


def lost_to(trials: Trials, shake: Shake) -> float:
    """KL in nats."""
    trials.swaps.put({})
    for tensor in shake.tensors:
        weight = trials.swaps.bank.weight(tensor, UNTOUCHED)
        noise = torch.randn(weight.shape, generator=seeded(shake.seed, tensor))
        noise *= shake.size**0.5 * weight.norm() / weight.numel() ** 0.5
        trials.swaps.put_weight(tensor, weight + noise)
    return trials.score({}, documents=shake.documents).kl.value


def relative_error(bank: Bank, unit: Unit, scheme: str) -> float:
    """t^2, the mean over the unit's tensors: the noise has the same t in all of them."""
    ratios = []
    for tensor in unit.tensors:
        weight = bank.weight(tensor, UNTOUCHED)
        error = (bank.weight(tensor, scheme) - weight).double().square().sum()
        ratios.append(float(error / weight.double().square().sum()))
    return sum(ratios) / len(ratios)
