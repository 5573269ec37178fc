"""Percentile clip smoothing: only the few loudest channels are brought down to the rest.

Zhang et al. 2023 (DGQ), https://arxiv.org/abs/2310.04836, section 3.3
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pennyweight.transform.base import Consumers, transform


@transform("clip_smooth")
@dataclass(frozen=True, kw_only=True)
class ClipSmooth:
    """s = max(absmax / t, 1), with t the `1 - share` quantile of the channels' absmax.

    t is the b-th largest with b = int(share * channels + 1.5), as in the authors' code, which also
    leaves an input alone whose t is below `least`.
    """

    share: float = 0.005  # of the channels, that lie above t
    least: float = 1e-4
    needs: ClassVar[frozenset[str]] = frozenset({"absmax"})
    source: ClassVar[str] = "Zhang et al. 2023 (DGQ), arXiv:2310.04836"

    def __call__(self, consumers: Consumers) -> Float[Tensor, " in"]:
        absmax = consumers.stats.require("absmax")
        rank = min(int(self.share * len(absmax) + 1.5), len(absmax))
        limit = absmax.topk(rank).values[-1]
        if limit < self.least:
            return torch.ones_like(absmax)
        return (absmax / limit).clamp(min=1)
