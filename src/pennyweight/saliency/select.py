"""From scores to the weights that are kept: the share that scores highest."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int32
from pydantic import Field
from torch import Tensor

from pennyweight.core import NumericalError, RecipeError

Scope = Literal["tensor", "row"]
Wide = Literal["layer", "model"]  # of more than a tensor: a decoder block, or all of them
WIDE = get_args(Wide)
HALF = 16  # bits of a score by which scores are counted at once
SLICE = 2**18  # scores counted at a time: they stay in a core's own cache
Share = Annotated[float, Field(ge=0, le=1)]  # a recipe that asks for more fails when it is read


@dataclass(frozen=True)
class Cutoff:
    """Everything above `value` is kept, and the first `ties` of what equals it.

    First in the order of the tensors, and in a tensor row by row: a choice among equals has to be
    somebody's, and this one is the same on every machine.
    """

    value: float
    ties: int

    def keep(self, score: Float[Tensor, "out in"]) -> Bool[Tensor, "out in"]:
        kept = score > self.value
        equal = (score == self.value).view(-1).nonzero()[: self.ties, 0]
        kept.view(-1)[equal] = True
        return kept

    def after(self, score: Float[Tensor, "out in"]) -> Cutoff:
        """What is left of it for the next tensor, once this one has taken its share."""
        return Cutoff(self.value, max(self.ties - int((score == self.value).sum()), 0))


def cut(scores: Iterable[Float[Tensor, "_ _"]], share: float) -> Cutoff:
    """The Cutoff above which `share` of all the scores lie, of one tensor or of many together.

    Exact, with one tensor in memory at a time: scores are counted by the upper half of their bits,
    then those with the upper half of the one sought by their lower half. `scores` is walked through
    twice and has to be the same both times. Raises NumericalError on NaN, RecipeError on a share
    outside 0 to 1.
    """
    count_of(share, 0)  # a wrong share is told before anything is read
    by_upper = _counts(scores, lambda keys: (keys >> HALF) + 2 ** (HALF - 1))
    count = count_of(share, int(by_upper.sum()))
    if count == 0:
        return Cutoff(float("inf"), 0)
    upper, count = _find(by_upper, count)
    upper -= 2 ** (HALF - 1)
    by_lower = _counts(scores, lambda keys: keys[keys >> HALF == upper] & (2**HALF - 1))
    lower, count = _find(by_lower, count)
    return Cutoff(_score(upper << HALF | lower), count)


def keep_highest(
    score: Float[Tensor, "out in"], share: float, scope: Scope = "tensor"
) -> Bool[Tensor, "out in"]:
    """The mask of the `share` of all weights of a tensor, or of each row, that score highest.

    Raises NumericalError on NaN, RecipeError on a share outside 0 to 1.
    """
    if scope == "tensor":
        return cut([score], share).keep(score)
    count = count_of(share, require_numbers(score).shape[1])
    if count == 0:
        return torch.zeros_like(score, dtype=torch.bool)
    value = score.kthvalue(score.shape[1] - count + 1, dim=1, keepdim=True).values
    above, equal = score > value, score == value
    room = count - above.sum(1, keepdim=True)
    return above | (equal & (equal.cumsum(1) <= room))


def require_numbers(score: Tensor) -> Tensor:
    """The score. Raises NumericalError if it is NaN anywhere."""
    if bool(score.isnan().any()):
        row, column = score.isnan().nonzero()[0].tolist()
        raise NumericalError(f"the saliency is NaN at row {row}, column {column}")
    return score


def count_of(share: float, of: int) -> int:
    """How many of so many are kept. Raises RecipeError on a share outside 0 to 1."""
    if not 0 <= share <= 1:
        raise RecipeError(f"share: expected 0 to 1, found {share}")
    return round(share * of)


def _counts(scores: Iterable[Tensor], place: Callable[[Tensor], Tensor]) -> Tensor:
    """How many scores have each half key; `place` takes it from the keys it is given."""
    found = torch.zeros(2**HALF, dtype=torch.int64)
    for score in scores:
        for part in require_numbers(score).float().flatten().split(SLICE):
            found += torch.bincount(place(_keys(part)), minlength=2**HALF)
    return found


def _find(counts: Tensor, rank: int) -> tuple[int, int]:
    """The place in which the `rank`-th from the top is, and its rank there."""
    above = counts.flip(0).cumsum(0)
    step = int((above < rank).sum())
    return len(counts) - 1 - step, rank - (int(above[step - 1]) if step else 0)


def _keys(score: Float[Tensor, " weights"]) -> Int32[Tensor, " weights"]:
    """Integers in the order of the scores; 0 and -0 are equal."""
    bits = (score + 0.0).view(torch.int32)
    return bits ^ (bits >> 31 & 0x7FFFFFFF)  # negative floats are stored by size


def _score(key: int) -> float:
    """The inverse of `_keys`."""
    bits = key ^ (key >> 31 & 0x7FFFFFFF)
    return torch.tensor(bits, dtype=torch.int32).view(torch.float32).item()
