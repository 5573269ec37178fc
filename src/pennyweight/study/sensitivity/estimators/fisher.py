"""The second order of the loss by its diagonal: squared gradient times squared weight error.

Near the model KL(model || model with W + d) = 1/2 d^T F d with F the Fisher matrix of the
prediction of one token. Its diagonal is estimated from the gradients of the text's own next tokens
(the "empirical" Fisher), as in SqueezeLLM, Kim et al. 2023, https://arxiv.org/abs/2306.07629;
weighing squared weight errors by second derivatives is HAWQ-V3, https://arxiv.org/abs/2011.10680.
A sample's gradient is the mean of that of its tokens; where these have no common
direction its square is that of one token divided by their number, hence the factor.

A diagonal sees no errors that were chosen to cancel, as GPTQ's are, and the gradients of tokens do
have a common direction. What both do to the size of the numbers, `anchor` takes out.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from pennyweight.core import RecipeError, Stats
from pennyweight.pipeline.gradients import Gradients
from pennyweight.pipeline.job import with_text
from pennyweight.pipeline.plan import Plan, Task
from pennyweight.study.sensitivity.estimators.base import (
    Bench,
    Estimate,
    Wanted,
    anchored,
    estimator,
    require_weight_only,
)
from pennyweight.study.units import Unit


class GradientPlan(Plan):
    """A plan that asks for nothing but gradients."""

    def needs(self, task: Task) -> frozenset[str]:
        return frozenset({"squared_gradient"})


@estimator("fisher")
@dataclass(frozen=True, kw_only=True)
class Fisher:
    """Half the squared gradient times the squared error of the stored weights, summed."""

    samples: int = 32  # of the calibration text, whose gradients are taken
    anchor: bool = True  # scaled so that they sum to the KL of all units together, in each scheme
    together: ClassVar[bool] = True
    source: ClassVar[str] = "Kim et al. 2023, arXiv:2306.07629; Yao et al. 2020, arXiv:2011.10680"
    cost: ClassVar[str] = "one forward and one backward pass, and one forward for each scheme"

    def __call__(self, bench: Bench, wanted: Wanted) -> Iterator[Estimate]:
        """Raises RecipeError for fewer samples than one."""
        if self.samples < 1:
            raise RecipeError(f"fisher: samples: expected at least 1, found {self.samples}")
        require_weight_only(bench, wanted, "fisher")
        gradients = self._gradients(bench)
        assert gradients.rows is not None
        bench.spent.forward += gradients.rows.numel()
        bench.spent.backward += gradients.rows.numel()
        gradients.compute(list(range(len(bench.bank.survey.topologies))))
        found = (
            Estimate(unit=unit, scheme=scheme, value=self._loss(bench, gradients, unit, scheme))
            for unit, scheme in wanted
        )
        yield from anchored(bench, found) if self.anchor else found

    def _gradients(self, bench: Bench) -> Gradients:
        survey, ingredients = bench.bank.survey, bench.bank.ingredients
        plan = GradientPlan(
            model=ingredients.model, fingerprint=bench.bank.fingerprint, dtype="float32",
            compute="float32", seed=ingredients.seed, calibrate=ingredients.calibrate,
            tasks=tuple(
                Task(tensor=site.tensor, scheme="W4A16", quantizer="rtn") for site in survey.sites
            ),
        )  # fmt: skip
        calibration = bench.bank.calibration or with_text(bench.bank.path, survey, plan).calibration
        assert calibration is not None, "the plan asks for it"
        plan = replace(plan, calibration_digest=calibration.digest)
        return Gradients(
            plan=plan, survey=survey,
            folder=bench.folder / f"fisher-{self.samples}-{plan.digest[:16]}",
            rows=calibration.ids[: self.samples], workers=bench.workers, progress=bench.progress,
        )  # fmt: skip

    def _loss(self, bench: Bench, gradients: Gradients, unit: Unit, scheme: str) -> float:
        assert gradients.rows is not None
        predicted, total = gradients.rows.shape[1] - 1, 0.0
        for tensor in unit.tensors:
            stats = gradients.of(bench.bank.survey.by_tensor[tensor], Stats())
            fisher = stats.require("squared_gradient").double() * (predicted / stats.samples)
            total += float((fisher * squared_error(bench, tensor, scheme)).sum()) / 2
        return total


def squared_error(bench: Bench, tensor: str, scheme: str) -> Tensor:
    """Of each stored weight, [out, in], float64."""
    bank = bench.bank
    return (bank.weight(tensor, scheme) - bank.weight(tensor, "W16A16")).double().square()
