"""Second order in the layer's output, after the other weights have made up for it."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pennyweight.core import Format, NumericalError, Stats
from pennyweight.saliency.base import saliency, squared_rounding_error


@saliency("spqr")
@dataclass(frozen=True, kw_only=True)
class SpQR:
    """dq^2 / [H^-1]_jj: the output error of rounding this weight when all others adapt."""

    damp: float = 0.01  # fraction of the mean Hessian diagonal added to it
    needs: ClassVar[frozenset[str]] = frozenset({"gram"})
    source: ClassVar[str] = "Dettmers et al. 2023, arXiv:2306.03078"

    def __call__(
        self, weight: Float[Tensor, "out in"], format: Format, stats: Stats
    ) -> Float[Tensor, "out in"]:
        """Raises NumericalError if the damped Hessian is not positive definite."""
        inverse = stats.derive(("inverse diagonal", self.damp), lambda: self._inverse(stats))
        return squared_rounding_error(weight, format) / inverse

    def _inverse(self, stats: Stats) -> Float[Tensor, " in"]:
        """The diagonal of H^-1, in float64: it is done once for all linears that share an input."""
        hessian = stats.require("gram").double() / max(stats.tokens, 1)
        diagonal = hessian.diagonal()
        mean = diagonal.mean().item() or 1.0  # inputs that are all zero: any positive number
        # A column that saw no input has no neighbours; at the mean it scores as any other.
        diagonal.add_(torch.where(diagonal == 0, mean, 0.0) + self.damp * mean)
        lower, failed = torch.linalg.cholesky_ex(hessian)
        if failed or not bool(lower.diagonal().isfinite().all()):
            raise NumericalError(
                f"the Hessian is not positive definite with damp={self.damp:g}; "
                "use more, or more varied, calibration samples"
            )
        return torch.cholesky_inverse(lower).diagonal().float()
