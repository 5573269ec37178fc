"""The verdict in words: what became of each model, and which one to take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from pennyweight.evaluate import Interval
from pennyweight.evaluate.verdict import Verdict, verdict
from pennyweight.export.card import readable_bytes
from pennyweight.report.content import Badge, Card, Cards, Section, Text
from pennyweight.report.material import Material, Model
from pennyweight.report.quality import Score, comparable, eval_command, scores
from pennyweight.report.recovery import Kept, average, recoveries
from pennyweight.report.words import UNKNOWN, interval, number, plural, short, shown, written

MARKS = {
    Verdict.LOSSLESS: ("✓", "good"), Verdict.WITHIN: ("✓", "good"),
    Verdict.UNDECIDED: ("?", "fair"), Verdict.OVER: ("✕", "poor"), Verdict.CHANCE: ("·", "none"),
}  # fmt: skip
MOST_TASKS = 6  # on a card; the table below has all


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A model and what it is judged by: the perplexity of texts, the scores of tasks, or both."""

    model: Model
    score: Score | None
    kept: tuple[Kept, ...]  # of its tasks and their averages
    budget_percent: float

    @cached_property
    def on_texts(self) -> Verdict | None:
        return None if self.score is None else judge(self.score, self.budget_percent)

    @cached_property
    def average(self) -> Kept | None:
        """Over the tasks that say something."""
        return average(self.kept, self.model)

    @cached_property
    def on_tasks(self) -> Verdict | None:
        """Of the average: single tasks are claimed wrongly more often."""
        if not self.kept:
            return None
        return self.average.judged(self.budget_percent) if self.average else Verdict.CHANCE

    @property
    def is_measured(self) -> bool:
        return self.on_texts is not None or self.on_tasks not in (None, Verdict.CHANCE)

    @property
    def is_good(self) -> bool:
        """Shown to be good by texts, or by tasks where no text was measured, and by neither shown
        to lose too much."""
        first = self.on_tasks if self.on_texts is None else self.on_texts
        return _is_good(first) and self.on_tasks is not Verdict.OVER


def section(material: Material) -> Section:
    found = judged(material)
    cards = tuple(_card(one) for one in found)
    said = Text(text=headline(material, found))
    return Section(name="summary", title="Verdict", parts=(said, Cards(cards=cards)))


def judged(material: Material) -> list[Judged]:
    compared = {score.model.name: score for score in comparable(scores(material))}
    kept = recoveries(material)
    return [
        Judged(
            model=model, score=compared.get(model.name), budget_percent=material.budget_percent,
            kept=tuple(one for one in kept if one.model.name == model.name),
        )
        for model in material.models
    ]  # fmt: skip


def judge(score: Score, budget_percent: float) -> Verdict:
    """The loss is the rise of the perplexity, in percent of the reference's."""
    change = score.metrics["perplexity_change_percent"]
    kept = Interval(low=100 - change.high, value=100 - change.value, high=100 - change.low)
    return verdict(kept, budget_percent=budget_percent)


def headline(material: Material, found: Sequence[Judged]) -> str:
    measured = [one for one in found if one.is_measured]
    if not measured:
        return (
            "Nothing here was measured against a reference, so there is no verdict. "
            f"{eval_command(material.models[0])} measures; then repeat the report with "
            "`--records FILE.sqlite`."
        )
    good = [one for one in measured if one.is_good]
    if not good:
        return _none_is_good(measured)
    best = min(good, key=lambda one: one.model.proof.proof.size.bytes_after)
    bound = _bound(best)
    if len(measured) == 1:
        said = f"It takes {_bytes(best.model)} and stays within {bound} ({_loss(best)})."
    else:
        said = (
            f"Of {len(measured)} measured models {len(good)} "
            f"{'stays' if len(good) == 1 else 'stay'} within {bound}. The smallest that does is "
            f"{best.model.name}: it takes {_bytes(best.model)} ({_loss(best)})."
        )
    return said + _also_on_tasks(best)


def _none_is_good(measured: Sequence[Judged]) -> str:
    closest = min(measured, key=_loss_percent)
    by_texts = not _is_good(closest.on_texts) and closest.on_texts is not None
    first = closest.on_texts if by_texts else closest.on_tasks
    bound, loss = _bound(closest, by_texts), _loss(closest, by_texts)
    more = f"; more {'tokens' if by_texts else 'items'} would tell."
    end = more if first is Verdict.UNDECIDED else "."
    if len(measured) == 1:
        said = (
            f"{closest.model.name} is not shown to stay within {bound}: {loss}, at "
            f"{_bytes(closest.model)}{end}"
        )
    else:
        said = (
            f"None of these is shown to stay within {bound}. Closest: {closest.model.name}, "
            f"{loss}{end}"
        )
    return said + (_also_on_tasks(closest) if by_texts else "")


def _bound(one: Judged, by_texts: bool | None = None) -> str:
    """`1 % of the reference's perplexity`: by texts if there are some, unless told."""
    by_texts = one.score is not None if by_texts is None else by_texts
    what = "perplexity" if by_texts else "task scores"
    return f"{one.budget_percent:g} % of the reference's {what}"


def _loss(one: Judged, by_texts: bool | None = None) -> str:
    by_texts = one.score is not None if by_texts is None else by_texts
    if by_texts:
        assert one.score is not None
        change = one.score.metrics["perplexity_change_percent"]
        value, ends = f"{change.value:+.2f} %", interval(change, "+.2f")
    else:
        assert one.average is not None
        kept = one.average.recovery
        value, ends = f"{kept.value:.1f} % kept on {_tasks(one.average)}", interval(kept, ".1f")
    return value + (f", 95 % interval {ends}" if ends else "")


def _loss_percent(one: Judged) -> float:
    if one.score is not None:
        return one.score.metrics["perplexity_change_percent"].value
    assert one.average is not None, "measured by something"
    return 100 - one.average.recovery.value


def _also_on_tasks(one: Judged) -> str:
    """What is said of tasks where the perplexity came first."""
    if one.score is None or one.on_tasks is None:
        return ""
    if one.average is None:
        return " The reference guesses on the tasks that were asked, so they say nothing."
    found = shown(one.average.recovery, ".1f")
    assert one.on_tasks is not None
    return (
        f" On {_tasks(one.average)} it keeps {found} % of the reference's score: "
        f"{_words(one.on_tasks, one.budget_percent)}"
        f"{'; more items would tell' if one.on_tasks is Verdict.UNDECIDED else ''}."
    )


def _tasks(kept: Kept) -> str:
    return kept.tasks[0] if len(kept.tasks) == 1 else f"average over {len(kept.tasks)} tasks"


def _is_good(found: Verdict | None) -> bool:
    return found is not None and MARKS[found][1] == "good"


def _bytes(model: Model) -> str:
    size = model.proof.proof.size
    return f"{_share(size.bytes_after, size.bytes_before)} of the original's bytes"


def _share(after: int, before: int) -> str:
    return f"{100 * after / before:.0f} %" if before else "an unknown share"


def _card(one: Judged) -> Card:
    model = one.model
    schemes = list(dict.fromkeys(task.scheme for task in model.plan.tasks))
    return Card(
        title=model.name,
        subtitle=f"{short(model.plan.model)}, {', '.join(schemes) or 'nothing quantized'}",
        badges=tuple(_badges(one)),
        numbers=tuple(_numbers(one)),
        rows=tuple(_task_rows(one)),
    )


def _badges(one: Judged) -> Iterator[Badge]:
    """One for each thing it is judged by, named if there are two."""
    found = {"texts": one.on_texts, "tasks": one.on_tasks}
    known = {name: each for name, each in found.items() if each is not None}
    if not known:
        yield Badge(mark="·", tone="none", text="not measured")
    for name, each in known.items():
        mark, tone = MARKS[each]
        start = "" if list(known) == ["texts"] else f"{name}: "
        yield Badge(mark=mark, tone=tone, text=start + _words(each, one.budget_percent))


def _numbers(one: Judged) -> Iterator[tuple[str, str, str]]:
    size = one.model.proof.proof.size
    yield (
        "size", readable_bytes(size.bytes_after),
        f"{_share(size.bytes_after, size.bytes_before)} of {readable_bytes(size.bytes_before)}",
    )  # fmt: skip
    yield "bits a weight", number(size.bits_per_weight), "with scales and all"
    if one.score is not None:
        change, kl = (one.score.metrics[m] for m in ("perplexity_change_percent", "kl_nats"))
        yield "perplexity", f"{change.value:+.2f} %", interval(change, "+.2f")
        yield "KL, nats a token", written(kl.value, ".3g"), interval(kl, ".2g")


def _task_rows(one: Judged) -> Iterator[tuple[str, str, str]]:
    """The average, then the tasks that it is of, and others."""
    said = [each for each in one.kept if not each.is_average and each.above_chance]
    guessed = sum(not each.above_chance for each in one.kept)
    shown_first = said[:MOST_TASKS]
    if one.average is not None and len(one.average.tasks) > 1:
        shown_first.insert(0, one.average)
    for number_, each in enumerate(shown_first):
        name = each.name if number_ else f"recovery, {each.name}"
        yield name, _kept(each), interval(each.recovery, ".1f")
    if len(said) > MOST_TASKS:
        yield "more tasks", f"{len(said) - MOST_TASKS}", "in the table below"
    if guessed:
        yield plural(guessed, "task"), "none", "reference at chance"


def _kept(one: Kept) -> str:
    value = one.recovery.value
    return f"{value:.1f} %" if value == value else UNKNOWN


def _words(found: Verdict, budget_percent: float) -> str:
    budget = f"{budget_percent:g} %"
    return {
        Verdict.LOSSLESS: "lossless within noise",
        Verdict.WITHIN: f"within {budget}",
        Verdict.UNDECIDED: f"undecided at {budget}",
        Verdict.OVER: f"loses more than {budget}",
        Verdict.CHANCE: "reference at chance",
    }[found]
