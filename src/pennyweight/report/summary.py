"""The verdict in words: what became of each model, and which one to take."""

from __future__ import annotations

from collections.abc import Sequence

from pennyweight.evaluate import Interval
from pennyweight.evaluate.verdict import Verdict, verdict
from pennyweight.export.card import readable_bytes
from pennyweight.report.content import Card, Cards, Section, Text
from pennyweight.report.material import Material, Model
from pennyweight.report.quality import Score, comparable, eval_command, scores
from pennyweight.report.words import interval, number, written

MARKS = {
    Verdict.LOSSLESS: ("✓", "good"), Verdict.WITHIN: ("✓", "good"),
    Verdict.UNDECIDED: ("?", "fair"), Verdict.OVER: ("✕", "poor"),
}  # fmt: skip


def section(material: Material) -> Section:
    compared = {score.model.name: score for score in comparable(scores(material))}
    cards = tuple(_card(m, compared.get(m.name), material) for m in material.models)
    said = Text(text=headline(material, list(compared.values())))
    return Section(name="summary", title="Verdict", parts=(said, Cards(cards=cards)))


def judge(score: Score, budget_percent: float) -> Verdict:
    """The loss is the rise of the perplexity, in percent of the reference's."""
    change = score.metrics["perplexity_change_percent"]
    kept = Interval(low=100 - change.high, value=100 - change.value, high=100 - change.low)
    return verdict(kept, budget_percent=budget_percent)


def headline(material: Material, compared: Sequence[Score]) -> str:
    budget = f"{material.budget_percent:g} %"
    if not compared:
        return (
            "Nothing here was measured against a reference, so there is no verdict. "
            f"{eval_command(material.models[0])} measures; then repeat the report with "
            "`--records FILE.sqlite`."
        )
    good = [s for s in compared if MARKS[judge(s, material.budget_percent)][1] == "good"]
    if not good:
        closest = min(compared, key=lambda s: s.metrics["perplexity_change_percent"].value)
        open_ = judge(closest, material.budget_percent) is Verdict.UNDECIDED
        more = "; more tokens would tell." if open_ else "."
        if len(compared) == 1:
            return (
                f"{closest.model.name} is not shown to stay within {budget} of the reference's "
                f"perplexity: {_change(closest)}, at {_bytes(closest.model)}{more}"
            )
        return (
            f"None of these is shown to stay within {budget} of the reference's perplexity. "
            f"Closest: {closest.model.name}, {_change(closest)}{more}"
        )
    best = min(good, key=lambda s: s.model.proof.proof.size.bytes_after)
    word = "It" if len(compared) == 1 else f"The smallest that does is {best.model.name}: it"
    start = "" if len(compared) == 1 else (
        f"Of {len(compared)} measured models {len(good)} {'stays' if len(good) == 1 else 'stay'} "
        f"within {budget} of the reference's perplexity. "
    )  # fmt: skip
    within = f" and stays within {budget} of the reference's perplexity" if not start else ""
    return f"{start}{word} takes {_bytes(best.model)}{within} ({_change(best)})."


def _bytes(model: Model) -> str:
    size = model.proof.proof.size
    return f"{_share(size.bytes_after, size.bytes_before)} of the original's bytes"


def _share(after: int, before: int) -> str:
    return f"{100 * after / before:.0f} %" if before else "an unknown share"


def _change(score: Score) -> str:
    change = score.metrics["perplexity_change_percent"]
    ends = interval(change, "+.2f")
    return f"{change.value:+.2f} %" + (f", 95 % interval {ends}" if ends else "")


def _card(model: Model, score: Score | None, material: Material) -> Card:
    size = model.proof.proof.size
    schemes = list(dict.fromkeys(task.scheme for task in model.plan.tasks))
    numbers = [
        ("size", readable_bytes(size.bytes_after),
         f"{_share(size.bytes_after, size.bytes_before)} of {readable_bytes(size.bytes_before)}"),
        ("bits a weight", number(size.bits_per_weight), "with scales and all"),
    ]  # fmt: skip
    mark, tone, said = "·", "none", "not measured"
    if score is not None:
        found = judge(score, material.budget_percent)
        mark, tone = MARKS[found]
        said = _words(found, material.budget_percent)
        change, kl = score.metrics["perplexity_change_percent"], score.metrics["kl_nats"]
        numbers += [
            ("perplexity", f"{change.value:+.2f} %", interval(change, "+.2f")),
            ("KL, nats a token", written(kl.value, ".3g"), interval(kl, ".3g")),
        ]
    return Card(
        title=model.name,
        subtitle=f"{model.plan.model}, {', '.join(schemes) or 'nothing quantized'}",
        mark=mark,
        tone=tone,
        verdict=said,
        numbers=tuple(numbers),
    )


def _words(found: Verdict, budget_percent: float) -> str:
    budget = f"{budget_percent:g} %"
    return {
        Verdict.LOSSLESS: "lossless within noise",
        Verdict.WITHIN: f"within {budget}",
        Verdict.UNDECIDED: f"undecided at {budget}",
        Verdict.OVER: f"loses more than {budget}",
    }[found]
