"""SignRound: whether each weight is rounded up or down, learned from the block's output.

Cheng et al. 2023, https://arxiv.org/abs/2309.05516 (what auto-round runs)

    W ~= s (clamp(round(W / s + z + V)) - z), V in +-1/2 for each weight, and s and z those of the
    range alpha min .. beta max of each group

V, alpha and beta follow the sign of their gradients of the squared error of the block's output,
with rates that fall to zero: so a weight moves by half a step at most. alpha and beta start at the
range that the rule's quantizer left (the full one after `rtn`, as in the paper) and go from half of
that to the full one.

With `start = "codes"` learning starts at the codes of the rule: a weight that its quantizer, say
gptq, rounded otherwise than to the nearest code is moved beside the boundary of the code that it
has. With "nearest" it starts, as in the paper, from the original weights.

What differs from the authors' code: float32 throughout; the best pass over the samples is kept, by
the error on every eighth of them, not the best step by that on its own batch, and nothing if that
is worse than the start. As theirs do, these samples teach as well as judge; `held_out` keeps them
apart. Beside the block it needs three float32 numbers for each of its weights: what the offset is
added to, the offset, and its gradient.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pennyweight.core import Format, QTensor, Quantized, blocked, plain
from pennyweight.formats.rounding import positive, snap
from pennyweight.train.base import Given, Learning, Start, Target, Values, trainer
from pennyweight.train.learned_range import ROWS, require_bare, require_range, starting_fraction
from pennyweight.train.straight import straight

HALF = 0.5  # of a step of the codes: how far an offset goes
BESIDE = 0.49  # of a step from its code: where a weight starts that was not rounded to nearest
NARROWEST = 0.5  # of the range that learning starts from


@dataclass(frozen=True, kw_only=True)
class LearnedRounding:
    """A linear with an offset per weight that decides its code, and a learned range per group."""

    format: Format
    weight: Float[Tensor, "out in"]  # what the offsets are added to
    scale: Float[Tensor, "row_groups groups"]  # where learning starts
    zero_point: Float[Tensor, "row_groups groups"] | None
    low: str  # names of the parameters; of a symmetric format the same
    high: str
    offsets: tuple[str, ...]  # of `task_rows` rows each

    @property
    def reads(self) -> tuple[str, ...]:
        return (*dict.fromkeys((self.low, self.high)), *self.offsets)

    @property
    def task_rows(self) -> int:
        return rows_of_task(self.format, self.weight)

    def rows(self, values: Values, start: int, stop: int) -> Float[Tensor, "rows in"]:
        rows = slice(start, stop)
        scale, zero_point = self._range(values, rows)
        offset = values[self.offsets[start // self.task_rows]]
        value, grid = self._value(rows, scale, zero_point, offset), self.format.grid
        # A weight less than half a step beyond the codes can still be pulled back, one further not.
        near = value.clamp(grid.lowest - HALF, grid.highest + HALF)
        code = straight(near, grid.nearest_(value.detach().clone()))
        code = blocked(code, scale.shape)
        zero = grid.middle if zero_point is None else zero_point[:, None, :, None]
        return ((code - zero) * scale[:, None, :, None]).reshape(value.shape)

    def _value(
        self, rows: slice, scale: Tensor, zero_point: Tensor | None, offset: Tensor
    ) -> Float[Tensor, "rows in"]:
        """What is rounded, in steps of the codes."""
        weight = self.weight[rows]
        zero = self.format.grid.middle if zero_point is None else zero_point[:, None, :, None]
        value = blocked(weight, scale.shape) / scale[:, None, :, None] + zero
        return value.reshape(weight.shape) + offset

    def _range(self, values: Values, rows: slice) -> tuple[Tensor, Tensor | None]:
        """(scale, zero point) as they are stored, with the gradient of what was rounded to them."""
        rows = rows if self.format.group_rows == 1 else slice(None)
        # Copies: autograd keeps no tensor of inference mode, which parameters may be.
        low, high = (values[name][rows].clone() for name in (self.low, self.high))
        full = self.scale[rows]
        if self.zero_point is None:
            scale = high * full
            return straight(scale, plain(snap(scale.detach(), None, self.format)[0])), None
        grid, zero = self.format.grid, self.zero_point[rows]
        below, above = low * (zero - grid.lowest), high * (grid.highest - zero)
        share = (below + above) / (grid.highest - grid.lowest)
        scale, zero = full * share, grid.lowest + below / positive(share)
        stored = snap(scale.detach(), zero.detach(), self.format)
        return straight(scale, plain(stored[0])), straight(zero, plain(stored[1]))

    def quantize(self, weight: Float[Tensor, "out in"], values: Values) -> Quantized:
        with torch.no_grad():
            scale, zero_point = self._range(values, slice(None))
            offset = torch.cat([values[name] for name in self.offsets])
            value = self._value(slice(None), scale, zero_point, offset)
        codes = self.format.grid.encode(value)
        made = QTensor(format=self.format, codes=codes, scale=scale, zero_point=zero_point)
        return Quantized(weight=made)


def rows_of_task(format: Format, weight: Tensor) -> int:
    return ROWS if format.group_rows == 1 else len(weight)


def beside_codes(start: Start) -> Float[Tensor, "out in"]:
    """The weights, but those that were not rounded to the nearest code as near to their original
    value as still rounds to the code they have."""
    made, grid = start.quantized.weight, start.format.grid
    scale, zero_point = plain(made.scale)[:, None, :, None], plain(made.zero_point)
    zero = grid.middle if zero_point is None else zero_point[:, None, :, None]
    groups = plain(made.scale).shape
    value = blocked(start.weight, groups) / scale + zero
    code = grid.decode(blocked(made.codes, groups))
    moved = value.clamp(code - BESIDE, code + BESIDE)
    moved = moved.where(grid.nearest_(moved.clone()) == code, code)  # steps may be less than 1
    kept = grid.nearest_(value.clone()) == code
    weight = ((moved - zero) * scale).reshape(start.weight.shape)
    return start.weight.where(kept.reshape(start.weight.shape), weight)


@trainer("signround")
@dataclass(frozen=True, kw_only=True)
class SignRound:
    """Learned rounding of each weight and learned ranges, by signed gradients, per block."""

    steps: int = 200  # in all, however many samples there are
    batch: int = 8  # samples per step
    held_out: bool = False  # the eighth of the samples that judges is not learned from
    rate: float = 1.0  # learning rate of the first step times `steps`; it falls to 0 linearly
    range_rate: float = 1.0  # likewise, of the ranges
    start: Literal["codes", "nearest"] = "codes"  # of the rule, or those nearest to the weights
    target: Target = "original"  # output of the original model's block, or of it on same_input
    source: ClassVar[str] = "Cheng et al. 2023, arXiv:2309.05516"

    @property
    def epochs(self) -> int:
        """At most: a pass over the samples takes a step or more."""
        return self.steps

    def visits(self, samples: int) -> int:
        return self.steps * min(self.batch, samples)

    @property
    def links(self) -> bool:
        return False

    @property
    def linears_alone(self) -> bool:
        return True

    @property
    def loss(self) -> str:
        return "output"

    def check_format(self, format: Format) -> None:
        require_range(format)

    def __call__(self, given: Given) -> Learning:
        require_bare(given, "signround")
        start, rates, bounds, weights = {}, {}, {}, {}
        half, steps = torch.tensor(HALF), max(self.steps, 1)
        for name, one in given.linears.items():
            made = self._linear(name, one)
            factor = torch.ones_like(made.scale)
            widest = 1 / starting_fraction(one).clamp(min=NARROWEST)
            for factors in dict.fromkeys((made.low, made.high)):
                start[factors], rates[factors] = factor.clone(), self.range_rate / steps
                bounds[factors] = NARROWEST * factor, widest
            rows = made.weight.split(made.task_rows)
            for offset, part in zip(made.offsets, rows, strict=True):
                start[offset], rates[offset] = torch.zeros_like(part), self.rate / steps
                bounds[offset] = -half, half
            weights[name] = made
        return Learning(
            start=start, rates=rates, weights=weights, bounds=bounds, signed_steps=self.steps
        )

    def _linear(self, name: str, one: Start) -> LearnedRounding:
        made = one.quantized.weight
        weight = beside_codes(one) if self.start == "codes" else one.weight
        with torch.inference_mode(False):  # autograd keeps no tensor of inference mode
            weight, scale = weight.clone(), plain(made.scale).clone()
            zero_point = None if made.zero_point is None else plain(made.zero_point).clone()
        tasks = -(-len(weight) // rows_of_task(one.format, weight))
        return LearnedRounding(
            format=one.format, weight=weight, scale=scale, zero_point=zero_point,
            low=f"{name}.high" if one.format.symmetric else f"{name}.low", high=f"{name}.high",
            offsets=tuple(f"{name}.offset.{task}" for task in range(tasks)),
        )  # fmt: skip
