"""The tasks of a budget of recovery: what candidates are asked, and whether that can tell enough.

Every candidate answers the items that the reference answered, as `pennyweight eval --tasks` has it,
and is inside where the lower end of the paired 95 % interval of its recovery is at least the limit.
Even a model with every answer of the reference has an interval, whose width is that of the number
of items; a budget inside it is refused before anything else is measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any

from pennyweight.core import BudgetError, Progress
from pennyweight.evaluate import Interval
from pennyweight.evaluate.outcomes import TaskScores
from pennyweight.evaluate.recovery import Judging, Recoveries, recoveries
from pennyweight.model.workers import start_workers
from pennyweight.pipeline.engine import Keeping, Run
from pennyweight.pipeline.tasks import Reference, TaskSettings, evaluate_tasks
from pennyweight.study.planning.budget import Budget

MOST_ITEMS = 1 << 20  # beyond it, the number of items that would be needed is not looked for


@dataclass(frozen=True, kw_only=True)
class Exam:
    """Questions that the reference has answered."""

    budget: Budget
    model: str  # the reference
    settings: TaskSettings
    keeping: Keeping  # scores that are kept there are not asked for again
    scores: tuple[TaskScores, ...]  # of the reference
    progress: Progress
    threads: int | None = None  # that questions are spread over, each on one

    @classmethod
    def open(
        cls, budget: Budget, model: str, settings: TaskSettings, *, keeping: Keeping,
        progress: Progress, threads: int | None = None,
    ) -> Exam:  # fmt: skip
        """Ask the reference.

        Raises BudgetError for tasks that cannot tell whether a candidate is inside, and what
        `evaluate_tasks` raises.
        """
        with start_workers(threads) as workers:
            report = evaluate_tasks(
                Run(model=model, mapper=workers), settings, keeping=keeping, progress=progress
            )
        require_power(report.scores, budget, Judging(seed=settings.seed))
        return cls(
            budget=budget, model=model, settings=settings, keeping=keeping, scores=report.scores,
            progress=progress, threads=threads,
        )  # fmt: skip

    @property
    def judging(self) -> Judging:
        return Judging(budget_percent=self.budget.allowed, seed=self.settings.seed)

    @property
    def best(self) -> Interval:
        """The recovery, in percent, of a model that gives every answer of the reference."""
        found = kept(recoveries(self.scores, self.scores, judging=self.judging))
        assert found is not None, "of no power is refused"
        return found

    @property
    def items(self) -> int:
        return sum(len(each.values) for each in self.scores)

    @property
    def subject(self) -> Mapping[str, Any]:
        """Everything that a candidate's recovery depends on, beside the candidate."""
        asked = asdict(self.settings)
        del asked["tasks"], asked["run_code"]
        judged = asdict(self.judging)
        del judged["budget_percent"]  # says what the interval means, not what it is
        return {
            "tasks": [each.task for each in self.scores], "asked": asked, "judged": judged,
            "metrics": [each.metric for each in self.scores],
            "questions": [each.items for each in self.scores], "harness": version("lm-eval"),
        }  # fmt: skip

    @property
    def facts(self) -> dict[str, Any]:
        """For the file beside a plan."""
        scores = {each.task: sum(each.values) / len(each.values) for each in self.scores}
        return {
            "tasks": scores, "metrics": [each.metric for each in self.scores],
            "items": self.items, "best_possible_recovery_percent": asdict(self.best),
        }  # fmt: skip

    def recovery(self, run: Run) -> Interval:
        """In percent, of the task or of the mean score over tasks. Raises what asking raises."""
        reference = Reference(model=self.model)
        with start_workers(self.threads) as workers:
            report = evaluate_tasks(
                replace(run, mapper=workers), self.settings, against=reference,
                judging=self.judging, keeping=self.keeping, progress=self.progress,
            )  # fmt: skip
        assert report.comparison is not None, "compared with the reference"
        found = kept(report.comparison)
        assert found is not None, "of no power is refused"
        return found


def lost(recovery_percent: Interval) -> Interval:
    """The loss, in percent of the reference's score."""
    return Interval(
        low=100 - recovery_percent.high, value=100 - recovery_percent.value,
        high=100 - recovery_percent.low,
    )  # fmt: skip


def kept(found: Recoveries) -> Interval | None:
    """The recovery of the one task, or of the average of those on which the reference does not
    guess; None: it guesses on all."""
    return None if found.average is None else found.average.recovery_percent


def require_power(scores: Sequence[TaskScores], budget: Budget, judging: Judging) -> None:
    """Raises BudgetError where the reference guesses, or where the items are so few that not even
    its own answers would be inside the budget."""
    found = recoveries(scores, scores, judging=judging)
    best, names = kept(found), ", ".join(each.task for each in scores)
    if best is None or math.isnan(best.value):
        shown = "; ".join(
            f"{each.task}: {each.reference.value:.3g} % right ({each.reference.low:.3g} to "
            f"{each.reference.high:.3g}), {100 * (each.chance or 0):.3g} % by chance"
            for each in found.tasks
        )
        raise BudgetError(
            f"{budget}: the reference does no better than guessing ({shown}), so that nothing it "
            "knows can be lost; take another task, more items, or plan by kl"
        )
    if best.low >= budget.limit:
        return
    assert found.average is not None
    mine = [each for each in scores if each.task in found.average.tasks]
    needed = items_needed(mine, budget.limit, judging)
    raise BudgetError(
        f"{budget}: {sum(len(each.values) for each in mine)} items of {names} are too few; a model "
        "that gives every answer of the reference has an interval of its recovery down to "
        f"{best.low:.4g} %. Give {_more(needed)}, or allow more"
    )


def _more(needed: int | None) -> str:
    if needed is None:
        return "more items"
    return f"at least {needed} items (and more than that for a model with other answers)"


def items_needed(scores: Sequence[TaskScores], limit: float, judging: Judging) -> int | None:
    """The least number of items, shares of right answers being as they are, with which every
    answer of the reference would show a recovery of `limit` percent; two digits, rounded up.

    None: beyond `MOST_ITEMS`, or of scores that are not right or wrong, whose spread is not known.
    """
    if not all(each.binary for each in scores):
        return None
    total = sum(len(each.values) for each in scores)
    judging = replace(judging, keep_chance=True)  # chosen before

    def enough(items: int) -> bool:
        sized = [_resized(each, math.ceil(len(each.values) * items / total)) for each in scores]
        found = kept(recoveries(sized, sized, judging=judging))
        return found is not None and found.low >= limit

    few, many = 0, total
    while not enough(many):
        few, many = many, 2 * many
        if many > MOST_ITEMS:
            return None
    while many - few > max(1, many // 100):
        middle = (few + many) // 2
        few, many = (few, middle) if enough(middle) else (middle, many)
    unit = 10 ** max(0, len(str(many)) - 2)
    return -(-many // unit) * unit


def _resized(scores: TaskScores, items: int) -> TaskScores:
    """So many items with as large a share of right answers."""
    right = round(items * sum(scores.values) / len(scores.values))
    return replace(scores, values=(1.0,) * right + (0.0,) * (items - right))
