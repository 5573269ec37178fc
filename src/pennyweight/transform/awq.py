"""AWQ: scale up the columns that see large inputs, so that rounding hurts them less.

Lin et al. 2023, https://arxiv.org/abs/2306.00978, section 3.2
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pennyweight.transform.base import Consumers, transform
from pennyweight.transform.judge import output_error


@transform("awq")
@dataclass(frozen=True, kw_only=True)
class AWQ:
    """s = mean|x|^a, with the a of the least output error out of `steps` in 0 .. 1.

    Normalised to geometric mean of its extremes 1, as the authors' code does. The error is measured
    on sampled inputs with the scheme rounded to nearest.
    """

    steps: int = 20
    least: float = 1e-4  # floor of s, as in the authors' code
    needs: ClassVar[frozenset[str]] = frozenset({"abs_sum"})
    source: ClassVar[str] = "Lin et al. 2023, arXiv:2306.00978"

    def __call__(self, consumers: Consumers) -> Float[Tensor, " in"]:
        mean = consumers.stats.require("abs_sum") / max(consumers.stats.tokens, 1)
        trials = [self.normalised(mean, step / self.steps) for step in range(self.steps)]
        errors = [output_error(consumers, trial) for trial in trials]
        return trials[min(range(len(trials)), key=errors.__getitem__)]

    def normalised(self, mean: Float[Tensor, " in"], power: float) -> Float[Tensor, " in"]:
        if power == 0:
            return torch.ones_like(mean)
        scale = (mean**power).clamp(min=self.least)
        return scale / (scale.max() * scale.min()).sqrt()
