"""How good each model is: what was measured of it on texts and on tasks, with intervals."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pennyweight.core.record import Record
from pennyweight.evaluate import Interval
from pennyweight.pipeline import evidence
from pennyweight.report import recovery
from pennyweight.report.content import Absent, Section, Table, Text
from pennyweight.report.material import Material, Model
from pennyweight.report.words import record_interval, short, shown

TITLE = "Quality"
SHOWN = {
    "perplexity": ("perplexity", ".4g"),
    "perplexity_change_percent": ("change, %", "+.2f"),
    "kl_nats": ("KL, nats a token", ".3g"),
    "top1_agreement_percent": ("same top token, %", ".1f"),
}


@dataclass(frozen=True, kw_only=True)
class Score:
    """One evaluation over texts of one model. Two compare if their `conditions` are equal."""

    model: Model
    conditions: str  # text and how it was scored, in words
    data: str  # digest of the tokens
    reference: str
    metrics: Mapping[str, Interval]
    made_at: str = ""
    key: str = field(default="", compare=False)


def scores(material: Material) -> list[Score]:
    """Of every model: from the records, then from its evaluation.json unless that is one of
    them."""
    found: list[Score] = []
    for model in material.models:
        mine = [*_from_records(model, material.records)]
        extra = [] if model.evaluation is None else [_from_file(model)]
        known = {(s.data, s.conditions) for s in mine}
        found += mine + [s for s in extra if (s.data, s.conditions) not in known]
    return found


def comparable(found: Sequence[Score]) -> list[Score]:
    """The scores against a reference under the conditions that most models share: one a model."""
    compared = [s for s in found if "kl_nats" in s.metrics]
    groups: dict[tuple[str, str], dict[str, Score]] = {}
    for score in compared:
        groups.setdefault((score.data, score.conditions), {})[score.model.name] = score
    return list(max(groups.values(), key=len).values()) if groups else []


def eval_command(model: Model) -> str:
    paths = f"{shlex.quote(str(model.path))} --against {shlex.quote(model.plan.model)}"
    return f"`pennyweight eval {paths} --records FILE.sqlite`"


def section(material: Material) -> Section | Absent:
    found, recovered = scores(material), recovery.recoveries(material)
    if not found and not recovered:
        return Absent(
            title=TITLE,
            need=f"this command measures and does nothing else to the files: "
            f"{eval_command(material.models[0])}",
        )
    parts = []
    if found:
        parts.append(_texts(found))
    if recovered:
        parts.append(recovery.table(recovered, material.budget_percent))
    unmeasured = [m for m in material.models if all(s.model.name != m.name for s in found)]
    for model in unmeasured:
        parts.append(Text(text=f"{model.name} was not measured; {eval_command(model)} does."))
    return Section(name="quality", title=TITLE, parts=(*_intro(found), *parts))


def _intro(found: Sequence[Score]) -> Iterator[Text]:
    if found:
        yield Text(
            text="Every value with its 95 % interval. Change, KL divergence and agreement are "
            "paired: model and reference read the same tokens. KL (nats a token) is how far the "
            "model's predictions are from the reference's; 0 is no difference."
        )


def _texts(found: Sequence[Score]) -> Table:
    """What is the same in every row is said once, above the table."""
    ways = {(score.reference, score.conditions) for score in found}
    rows = []
    for score in found:
        where = (short(score.reference) or "none", score.conditions) if len(ways) > 1 else ()
        rows.append((score.model.name, *(_cell(score, name) for name in SHOWN), *where))
    caption, head = "Measured over texts", ["model", *(name for name, _ in SHOWN.values())]
    if len(ways) > 1:
        head += ["against", "on"]
    else:
        reference, conditions = ways.pop()
        caption += f" against {short(reference)}" * bool(reference) + f", on {conditions}"
    return Table(caption=caption, head=tuple(head), rows=tuple(rows), words=frozenset({0, 5, 6}))


def _cell(score: Score, metric: str) -> str:
    found = score.metrics.get(metric)
    return "no reference" if found is None else shown(found, SHOWN[metric][1])


def _from_records(model: Model, records: Sequence[Record]) -> Iterator[Score]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        mine = record.subject.get("fingerprint") == model.fingerprint
        if record.study == evidence.STUDY and mine:
            groups.setdefault(record.key, []).append(record)
    for key, group in groups.items():
        subject = group[0].subject
        yield Score(
            model=model,
            conditions=_conditions(subject, subject.get("data", ()), subject.get("scored_tokens")),
            data=group[0].data,
            reference=str(subject.get("against") or ""),
            metrics={r.metric: record_interval(r) for r in group},
            made_at=group[0].made_at,
            key=key,
        )


def _from_file(model: Model) -> Score:
    found = model.evaluation
    assert found is not None
    metrics = {"perplexity": found.perplexity, "bits_per_byte": found.bits_per_byte}
    metrics |= {
        k: v for k, v in (found.comparison or {}).items() if k in SHOWN and k not in metrics
    }
    settings = dict(found.settings) | {"attention": found.attention}
    return Score(
        model=model,
        conditions=_conditions(settings, found.data, found.tokens),
        data=found.digest,
        reference=found.reference,
        metrics={name: ends.interval for name, ends in metrics.items() if ends is not None},
    )


def _conditions(settings: Mapping[str, Any], data: Sequence[str], tokens: int | None) -> str:
    said = [", ".join(map(str, data)) or "tokens"]
    if isinstance(tokens, int):
        said.append(f"{tokens:,} tokens")
    if settings.get("document_tokens"):
        said.append(f"first {settings['document_tokens']} of each document")
    said.append(f"context {settings.get('context')}")
    if settings.get("stride") != settings.get("context"):
        said.append(f"stride {settings.get('stride')}")
    attention = settings.get("attention") or {}
    names = {"kv_cache": "KV cache", "qk": "QK", "pv": "PV"}
    said += [f"{word} {attention[key]}" for key, word in names.items() if attention.get(key)]
    return ", ".join(said)
