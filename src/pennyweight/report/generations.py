"""What the reference and the model write after the same prompts, side by side."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from pennyweight.core.record import Record
from pennyweight.pipeline import similarity
from pennyweight.report.content import Absent, Pair, Section, Table, Text
from pennyweight.report.material import Material, Model
from pennyweight.report.words import record_interval, shown

TITLE = "What they write"
MOST = 8  # pairs on the page
METRICS = {
    "rouge1_percent": "ROUGE-1, %", "rougeL_percent": "ROUGE-L, %",
    "equal_percent": "equal answers, %", "prefix_tokens": "equal start, tokens",
    "prefix_percent": "equal start, %", "length_drift_percent": "change of length, %",
}  # fmt: skip


def section(material: Material) -> Section | Absent:
    tables = list(_alike(material))
    if not material.samples and not tables:
        first = material.models[0]
        path, source = shlex.quote(str(first.path)), shlex.quote(first.plan.model)
        return Absent(
            title=TITLE,
            need=f"`pennyweight eval {path} --against {source} --similarity --samples FILE.jsonl`, "
            "given with --samples",
        )
    parts = [*tables]
    if material.samples:
        parts += [Text(text=_said(material)), *_pairs(material)]
    return Section(name="generations", title=TITLE, parts=tuple(parts))


def _said(material: Material) -> str:
    count = len(material.samples)
    same = sum(each.model == each.reference for each in material.samples)
    shown_ = f"; the first {MOST} are shown" if count > MOST else ""
    return (
        f"{same} of {count} texts of {_whose(material)} are the same to the last character"
        f"{shown_}. Pale text is what both wrote; a mark shows where they part."
    )


def _whose(material: Material) -> str:
    """The model that wrote the samples, where its directory holds them."""
    folder = Path(material.samples_from).parent
    return next((m.name for m in material.models if m.path == folder), material.samples_from)


def _pairs(material: Material) -> Iterator[Pair]:
    for index, each in enumerate(material.samples[:MOST], 1):
        yield Pair(
            name=each.name or f"prompt {index}",
            prompt=each.prompt,
            reference=each.reference,
            model=each.model,
            shared=shared(each.reference, each.model),
        )


def shared(a: str, b: str) -> int:
    """How many characters both begin with."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


def _alike(material: Material) -> Iterator[Table]:
    """How alike greedy answers are, of every model that has records of it."""
    found = [(model, record) for model in material.models for record in _records(material, model)]
    names = list(dict.fromkeys(record.metric for _, record in found))
    if not found:
        return
    rows = []
    for model in dict.fromkeys(model.name for model, _ in found):
        mine = {r.metric: r for each, r in found if each.name == model}
        rows.append((model, *(_cell(mine.get(name)) for name in names)))
    head = ("model", *(_title(name) for name in names))
    yield Table(caption="How alike greedy answers are", head=head, rows=tuple(rows))


def _records(material: Material, model: Model) -> list[Record]:
    """What compares the two; what is said of each alone stays in the store."""
    return [
        record
        for record in material.records
        if record.study == similarity.STUDY
        and record.subject.get("fingerprint") == model.fingerprint
        and not record.metric.startswith(("model_", "reference_"))
    ]


def _title(metric: str) -> str:
    return METRICS.get(metric, metric.replace("_percent", ", %").replace("_", " "))


def _cell(record: Record | None) -> str:
    return "not measured" if record is None else shown(record_interval(record), ".3g")
