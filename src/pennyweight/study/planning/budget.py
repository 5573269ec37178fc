"""How much may be lost, or spent: what a user writes, as a number of one metric."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pennyweight.core import RecipeError
from pennyweight.evaluate import Evaluation, Interval

PATTERN = re.compile(
    r"\s*(?P<metric>[a-z0-9_]+)\s*(?P<sign><=|>=)\s*(?P<limit>[^\s%]+)\s*(?P<percent>%?)"
    r"(?:\s+on\s+(?P<tasks>\S(?:.*\S)?))?\s*"
)
EXAMPLES = (
    '"kl<=0.02" (nats a token), "ppl<=1%", "recovery>=99% on arc_easy", "bits<=4.5" (a weight), '
    '"ratio>=0.9"'
)

NATS = "nats a token"


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A metric that a budget can be of."""

    metric: str  # as records call it
    sign: str
    bounded: Literal["loss", "cost"]
    unit: str  # of what is lost, in words
    percent: bool = False  # written with a % sign
    on_tasks: bool = False


KINDS = {
    "kl": Kind(metric="kl_nats", sign="<=", bounded="loss", unit=NATS),
    "ppl": Kind(
        metric="perplexity_change_percent", sign="<=", bounded="loss", unit="% of perplexity",
        percent=True,
    ),
    "recovery": Kind(
        metric="recovery_percent", sign=">=", bounded="loss", unit="% of the reference's score",
        percent=True, on_tasks=True,
    ),
    "bits": Kind(metric="bits_per_weight", sign="<=", bounded="cost", unit=NATS),
    "ratio": Kind(metric="quantization_ratio", sign=">=", bounded="cost", unit=NATS),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A limit. Of a loss: the cheapest inside it is wanted; of a cost: the least loss inside it."""

    name: str  # a key of KINDS
    limit: float
    tasks: tuple[str, ...] = ()  # names or files, as `eval --tasks` takes them; of a recovery

    @property
    def kind(self) -> Kind:
        return KINDS[self.name]

    @property
    def bounded(self) -> Literal["loss", "cost"]:
        return self.kind.bounded

    def __str__(self) -> str:
        on = f" on {','.join(self.tasks)}" if self.tasks else ""
        return f"{self.name}{self.kind.sign}{self.limit:g}{'%' if self.kind.percent else ''}{on}"

    @property
    def allowed(self) -> float:
        """The most that may be lost, in the metric `measured`; of a cost, its limit."""
        return 100 - self.limit if self.tasks else self.limit

    def observed(self, evaluation: Evaluation) -> Interval:
        """What was lost on text, in the metric of the budget; of a budget of costs it is the KL."""
        assert evaluation.comparison is not None, "a loss is against a reference"
        if self.name == "ppl":
            return evaluation.comparison.perplexity_change_percent
        return evaluation.comparison.kl_nats

    @property
    def measured(self) -> str:
        """The metric of what candidates lose."""
        if self.tasks:
            return "score_loss_percent"  # 100 - recovery
        return self.kind.metric if self.bounded == "loss" else "kl_nats"

    @property
    def of_nats(self) -> Callable[[float], float]:
        """The inverse of `nats`."""
        return (lambda nats: 100 * math.expm1(nats)) if self._relative else lambda nats: nats

    @property
    def _relative(self) -> bool:
        return self.name in ("ppl", "recovery")

    @property
    def nats(self) -> Callable[[float], float]:
        """From the metric to nats a token, in which the losses of units add up.

        The log of the perplexity ratio is the difference of mean losses in nats, which for text
        that the reference itself would write is the KL. Of a score nobody knows; a search begins
        as if a percent of it were a percent of perplexity, and is then told by measurements.
        """
        if self._relative:
            return lambda percent: math.log1p(percent / 100) if percent > -100 else -math.inf
        return lambda value: value


def parse_budget(text: str) -> Budget:
    """The budget of `kl<=0.02`, `ppl<=1%`, `recovery>=99% on arc_easy`, `bits<=4.5`, `ratio>=0.9`.

    Raises RecipeError for anything else.
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
    tasks = tuple(name.strip() for name in (match["tasks"] or "").split(",") if name.strip())
    if bool(tasks) != kind.on_tasks:
        wanted = "'on TASK' after it" if kind.on_tasks else "no task"
        raise RecipeError(f"--budget {text!r:.60}: {match['metric']} takes {wanted}")
    _check_limit(text, match["metric"], limit)
    return Budget(name=match["metric"], limit=limit, tasks=tasks)


def _check_limit(text: str, metric: str, limit: float) -> None:
    if limit <= 0 or (metric == "ratio" and limit > 1):
        raise RecipeError(
            f"--budget {text!r:.60}: expected a number above 0"
            + (" and at most 1" if metric == "ratio" else "")
        )
    if metric == "recovery" and limit >= 100:
        raise RecipeError(
            f"--budget {text!r:.60}: expected less than 100 %; an interval of finitely many items "
            "reaches below what was found, so that no loss at all cannot be shown"
        )


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
