"""How much may be lost, or spent: what a user writes, as a number of one metric."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pennyweight.core import RecipeError, UnsupportedError
from pennyweight.evaluate import Evaluation, Interval

PATTERN = re.compile(
    r"\s*(?P<metric>[a-z0-9_]+)\s*(?P<sign><=|>=)\s*(?P<limit>[^\s%]+)\s*(?P<percent>%?)"
    r"(?:\s+on\s+(?P<task>\S+))?\s*"
)
EXAMPLES = '"kl<=0.02" (nats a token), "ppl<=1%", "bits<=4.5" (a weight), "ratio>=0.9"'


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A metric that a budget can be of."""

    metric: str  # as records call it
    sign: str
    bounded: Literal["loss", "cost"]
    percent: bool = False  # written with a % sign
    task: bool = False  # on a task


KINDS = {
    "kl": Kind(metric="kl_nats", sign="<=", bounded="loss"),
    "ppl": Kind(metric="perplexity_change_percent", sign="<=", bounded="loss", percent=True),
    "recovery": Kind(metric="recovery_percent", sign=">=", bounded="loss", percent=True, task=True),
    "bits": Kind(metric="bits_per_weight", sign="<=", bounded="cost"),
    "ratio": Kind(metric="quantization_ratio", sign=">=", bounded="cost"),
}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A limit. Of a loss: the cheapest inside it is wanted; of a cost: the least loss inside it."""

    name: str  # a key of KINDS
    limit: float

    @property
    def kind(self) -> Kind:
        return KINDS[self.name]

    @property
    def bounded(self) -> Literal["loss", "cost"]:
        return self.kind.bounded

    def __str__(self) -> str:
        return f"{self.name}{self.kind.sign}{self.limit:g}{'%' if self.kind.percent else ''}"

    def observed(self, evaluation: Evaluation) -> Interval:
        """What was lost, in the metric of the budget; of a budget of costs it is the KL."""
        assert evaluation.comparison is not None, "a loss is against a reference"
        if self.name == "ppl":
            return evaluation.comparison.perplexity_change_percent
        return evaluation.comparison.kl_nats

    @property
    def measured(self) -> str:
        """The metric of what candidates lose."""
        return self.kind.metric if self.bounded == "loss" else "kl_nats"

    @property
    def of_nats(self) -> Callable[[float], float]:
        """The inverse of `nats`."""
        return (lambda nats: 100 * math.expm1(nats)) if self.name == "ppl" else lambda nats: nats

    @property
    def nats(self) -> Callable[[float], float]:
        """From the metric to nats a token, in which the losses of units add up.

        The log of the perplexity ratio is the difference of mean losses in nats, which for text
        that the reference itself would write is the KL.
        """
        if self.name == "ppl":
            return lambda percent: math.log1p(percent / 100) if percent > -100 else -math.inf
        return lambda value: value


def parse_budget(text: str) -> Budget:
    """The budget of `kl<=0.02`, `ppl<=1%`, `bits<=4.5`, `ratio>=0.9`.

    Raises RecipeError for anything else, UnsupportedError for what needs a task.
    """
    match = PATTERN.fullmatch(text)
    if match is None or match["metric"] not in KINDS:
        raise RecipeError(f"--budget {text!r:.60}: expected one like {EXAMPLES}")
    kind, limit = KINDS[match["metric"]], _number(match["limit"])
    if match["sign"] != kind.sign:
        raise RecipeError(f"--budget {text!r:.60}: {match['metric']} is bounded by {kind.sign}")
    if limit is None or bool(match["percent"]) != kind.percent:
        unit = "a number with a % sign" if kind.percent else "a number without a unit"
        raise RecipeError(f"--budget {text!r:.60}: expected {unit} after {kind.sign}")
    if bool(match["task"]) != kind.task:
        wanted = "'on TASK' after it" if kind.task else "no task"
        raise RecipeError(f"--budget {text!r:.60}: {match['metric']} takes {wanted}")
    if kind.task:
        raise UnsupportedError(
            f"--budget {text!r:.60}: a plan is not yet measured on tasks; plan by kl or ppl, and "
            f"check the result: pennyweight eval OUT --against MODEL --tasks {match['task']}"
        )
    if limit <= 0 or (match["metric"] == "ratio" and limit > 1):
        raise RecipeError(
            f"--budget {text!r:.60}: expected a number above 0"
            + (" and at most 1" if match["metric"] == "ratio" else "")
        )
    return Budget(name=match["metric"], limit=limit)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
