"""What a model keeps of its reference's scores on tasks: the records of `eval --tasks`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pennyweight.core.record import Record
from pennyweight.evaluate import Interval
from pennyweight.evaluate.verdict import Verdict, verdict
from pennyweight.pipeline import tasks
from pennyweight.report.content import Table
from pennyweight.report.material import Material, Model
from pennyweight.report.words import UNKNOWN, plural, record_interval, shown

NOT_ASKED = ("judging", "noise_floor", "model", "against")  # of a record's subject


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Recovery of one task, or of the mean score over several."""

    model: Model
    tasks: tuple[str, ...]
    is_average: bool
    recovery: Interval  # percent
    score: float | None  # of the model, percent
    reference: float | None
    floor_percent: float  # what the reference loses or gains against itself
    above_chance: bool
    asked: str  # the conditions, in words

    @property
    def name(self) -> str:
        return f"average of {plural(len(self.tasks), 'task')}" if self.is_average else self.tasks[0]

    def judged(self, budget_percent: float) -> Verdict:
        """By the budget of the page, which need not be that of `eval`."""
        if not self.above_chance:
            return Verdict.CHANCE
        return verdict(
            self.recovery, budget_percent=budget_percent, floor_percent=self.floor_percent
        )


def recoveries(material: Material) -> list[Kept]:
    """Of every model its tasks, then their averages. Of the same questions asked of the same
    models twice, with other budgets or a noise floor, the later."""
    found: dict[tuple[str, str], Kept] = {}
    for metric in (tasks.RECOVERY, tasks.AVERAGE):
        for record in material.records:
            if record.study != tasks.STUDY or record.metric != metric:
                continue
            asked = {k: v for k, v in record.subject.items() if k not in NOT_ASKED}
            for model in material.models:
                if record.subject.get("fingerprint") == model.fingerprint:
                    found[model.name, json.dumps(asked, sort_keys=True)] = _kept(model, record)
    order = {model.name: number for number, model in enumerate(material.models)}
    return sorted(found.values(), key=lambda one: (order[one.model.name], one.is_average))


def average(found: Sequence[Kept], model: Model) -> Kept | None:
    """What a model is judged by: its average over the most tasks, of several the last."""
    mine = [one for one in found if one.is_average and one.model.name == model.name]
    return max(reversed(mine), key=lambda one: len(one.tasks), default=None)


def table(found: Sequence[Kept], budget_percent: float) -> Table:
    """What is the same in every row is said once, above the table. An average of one task is that
    task."""
    found = [one for one in found if not one.is_average or len(one.tasks) > 1]
    ways = list(dict.fromkeys(one.asked for one in found))
    rows = [
        (
            one.model.name, one.name, _percent(one.reference), _percent(one.score),
            shown(one.recovery, ".1f"), str(one.judged(budget_percent)),
            *((one.asked,) if len(ways) > 1 else ()),
        )
        for one in found
    ]  # fmt: skip
    head = ("model", "task", "reference, %", "model, %", "recovery, %", "verdict")
    return Table(
        caption="Measured on tasks: recovery is the share of the reference's score that is kept; "
        f"a loss of {budget_percent:g} % is allowed" + f"; asked: {ways[0]}" * (len(ways) == 1),
        head=(*head, "asked") if len(ways) > 1 else head,
        rows=tuple(rows),
        words=frozenset({0, 1, 5, 6}),
    )


def _kept(model: Model, record: Record) -> Kept:
    detail, is_average = record.detail, record.metric == tasks.AVERAGE
    named = detail.get("tasks", ()) if is_average else (record.subject.get("task", ""),)
    return Kept(
        model=model,
        tasks=tuple(map(str, named)),
        is_average=is_average,
        recovery=record_interval(record),
        score=_value(detail.get("score")),
        reference=_value(detail.get("reference")),
        floor_percent=_value(detail.get("floor_percent")) or 0.0,
        above_chance=bool(detail.get("above_chance", True)),
        asked=_asked(record.subject),
    )


def _asked(subject: Mapping[str, Any]) -> str:
    limit, shots = subject.get("limit"), subject.get("shots")
    said = ["all items" if limit is None else f"the first {limit} items of each task"]
    if shots is not None:
        said.append(f"{plural(shots, 'example')} before a question")
    if subject.get("chat_template"):
        said.append("through the chat template")
    attention = subject.get("attention") or {}
    said += [f"{key} {attention[key]}" for key in ("kv_cache", "qk", "pv") if attention.get(key)]
    return ", ".join(said)


def _value(found: Any) -> float | None:
    """A number, or that in the middle of an interval."""
    if isinstance(found, Mapping):
        found = found.get("value")
    return float(found) if isinstance(found, int | float) and math.isfinite(found) else None


def _percent(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.1f}"
