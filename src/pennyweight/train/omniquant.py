"""OmniQuant: the range of each group, and a scale per channel, learned from the block's output.

Shao et al. 2023, https://arxiv.org/abs/2308.13137, sections 3.2 (learnable weight clipping) and 3.3
(learnable equivalent transformation)

    W ~= round(s W / t) in the range sigmoid(g_low) min .. sigmoid(g_high) max of each group

The loss is the squared error of the block's output. Ranges start where the rule's quantizer left
them: the full range after `rtn` (as in the paper, at sigmoid(4) = 0.982 of it), the searched one
after `mse_clip`. Scales move between norm and q,k,v; norm and gate,up; v and o; up and down, where
the topology shows that they can, one scale for all query heads that share a value head; they start
at 1, so put the transform `smoothquant` before, which is where the paper starts. When all is
learned they are folded into the weights and the block is proven to compute what it did.

What differs from the authors' code: float32 throughout (theirs finds NaN in float16); scales are
learned as exponents and so stay positive; the rounding of a zero point lets the gradient through;
the epoch that is best on held-out samples is kept, and nothing if that is worse than the start;
weight and input of attention's own products are not scaled, since these are not quantized here and
rotary positions let no free scale through; shifts are left out, since most models have no bias to
hold them; input scales have no gradient (none is clipped).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pennyweight.core import Format
from pennyweight.model.feeds import scale_parameter
from pennyweight.train.base import Given, Learning, Link, Target, Values, trainer
from pennyweight.train.learned_range import (
    learned_ranges,
    producer_scale,
    require_bare,
    require_range,
)


@trainer("omniquant")
@dataclass(frozen=True, kw_only=True)
class OmniQuant:
    """Learned ranges, and with `scale` learned channel scales, per block."""

    clip: bool = True  # learn the range of each group of weights
    scale: bool = False  # learn a scale per channel: for quantized activations
    epochs: int = 20  # the paper takes 40 for 2 bits
    batch: int = 1  # samples per step
    held_out: bool = True  # the eighth of the samples that judges is not learned from
    clip_rate: float = 1e-2  # learning rate of the ranges
    scale_rate: float = 5e-3  # of the scales; the paper takes 1e-3 for W4A4
    target: Target = "original"  # output of the original model's block, or of it on same_input
    source: ClassVar[str] = "Shao et al. 2023, arXiv:2308.13137"

    def visits(self, samples: int) -> int:
        return self.epochs * samples

    @property
    def links(self) -> bool:
        return self.scale

    @property
    def linears_alone(self) -> bool:
        return not self.scale

    @property
    def loss(self) -> str:
        return "output"

    def check_format(self, format: Format) -> None:
        require_range(format)

    def __call__(self, given: Given) -> Learning:
        require_bare(given, "omniquant")
        links = given.links if self.scale else ()
        weights, logits = learned_ranges(given, learn=self.clip, scaled=links)
        scales = {f"scale.{i}": torch.zeros(link.size) for i, link in enumerate(links)}
        rates = dict.fromkeys(logits, self.clip_rate) | dict.fromkeys(scales, self.scale_rate)
        return Learning(
            start=logits | scales,
            rates=rates,
            weights={n: one for n, one in weights.items() if one.reads},
            vectors=lambda values: _vectors(given, links, values),
            scales=lambda values: {
                i: values[f"scale.{i}"].exp()[link.channels] for i, link in enumerate(links)
            },
        )


def _vectors(given: Given, links: tuple[Link, ...], values: Values) -> dict[str, Tensor]:
    """Gains and biases of producers, divided by the scale that went into their readers."""
    found: dict[str, Tensor] = {}
    for index, link in enumerate(links):
        divide = 1 / producer_scale(values[f"scale.{index}"], link)
        for name, vector in given.vectors.items():
            if name.rpartition(".")[0] == link.producer:
                found[name] = scale_parameter(vector, divide, link.offset)
    return found
