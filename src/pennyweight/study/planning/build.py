"""A whole plan, built by the pipeline and measured on text that nobody chose it by.

A candidate is quantized as it would be for good: what a layer sees has passed the layers before it
in the schemes of this plan, which no table of single units knows. The checkpoint is removed once it
is measured; what was measured is a Record, and is not measured again.
"""

from __future__ import annotations

import fnmatch
import glob
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from pennyweight.allocate.base import Assignment
from pennyweight.core import Progress
from pennyweight.core.record import Record, record_key
from pennyweight.evaluate import Evaluation, Interval
from pennyweight.evaluate.evaluation import summarize
from pennyweight.evaluate.intervals import CONFIDENCE
from pennyweight.evaluate.scores import score_documents
from pennyweight.formats.schemes import UNTOUCHED
from pennyweight.model.engine import Engine
from pennyweight.model.load import load_model
from pennyweight.model.resolve import resolve_model
from pennyweight.model.workers import start_workers
from pennyweight.pipeline.engine import Run
from pennyweight.pipeline.job import prepare
from pennyweight.pipeline.quantize import quantize
from pennyweight.pipeline.recipe import Recipe, Rewrite, Rule, Training
from pennyweight.records import Clock, Store, provenance
from pennyweight.study.bank import Ingredients
from pennyweight.study.planning.budget import Budget
from pennyweight.study.planning.candidate import Measured
from pennyweight.study.planning.exam import Exam, lost
from pennyweight.study.sensitivity.table import Sensitivity, UnitLoss
from pennyweight.study.texts import Texts
from pennyweight.study.trial import Reference, joined, logits_of

STUDY = "plan"
TEXT_METRICS = ("kl_nats", "perplexity_change_percent")
NOTHING = Interval(low=0.0, value=0.0, high=0.0)


@dataclass(frozen=True, kw_only=True)
class Builder:
    """Builds assignments of one model and measures them on one text, and on the tasks of a budget
    that has some."""

    ingredients: Ingredients
    table: Sensitivity | None  # None until it is measured; only `noise` can do without
    budget: Budget
    texts: Texts
    folder: Path  # for what is being built
    store: Store
    engine: str  # that is to serve the result
    threads: int | None
    progress: Progress
    exam: Exam | None = None
    transform: tuple[Rewrite, ...] = ()
    train: tuple[Training, ...] = ()
    sharing: Engine | None = None  # with whose processes candidates are built

    def recipe(self, schemes: Assignment) -> Recipe:
        """One rule for each tensor, in the order in which they run."""
        rules = [
            replace(rule, match=match)
            for unit in self.units
            for rule in [self._rule(schemes[unit.name])]
            for match in matches(unit, self.tensors)
        ]
        return replace(
            self.ingredients.recipe(rules), engine=self.engine, transform=self.transform,
            train=self.train,
        )  # fmt: skip

    def _rule(self, scheme: str) -> Rule:
        return Rule(scheme=UNTOUCHED) if scheme == UNTOUCHED else self.ingredients.rule(scheme)

    @property
    def units(self) -> tuple[UnitLoss, ...]:
        assert self.table is not None, "measured before anything is built"
        return self.table.units

    @cached_property
    def tensors(self) -> tuple[str, ...]:
        return tuple(tensor for unit in self.units for tensor in unit.tensors)

    def measure(self, schemes: Assignment) -> Measured:
        """Raises what quantizing and evaluating raise, and RecipeError for what the engine cannot
        serve."""
        if set(schemes.values()) == {UNTOUCHED}:
            return self._nothing()
        recipe = self.recipe(schemes)
        job = prepare(recipe)
        subject = {
            "model": self.ingredients.model, "plan": job.plan.digest, "data": self.texts.digest,
            "settings": asdict(self.texts.settings), "schemes": dict(schemes),
        }  # fmt: skip
        subjects = [subject]
        if self.exam is not None:
            subjects.append({**subject, **self.exam.subject})
        missing, clock = [one for one in subjects if not self._known(one)], Clock()
        if missing:
            out = self.folder / f"candidate-{job.plan.digest[:12]}"
            if not out.exists():  # else an earlier run was stopped before it was measured
                quantize(
                    job, out, engine=self.sharing, threads=self.threads, progress=self.progress
                )
            for one in missing:
                self._keep(out, job.plan.digest, one, clock)
            shutil.rmtree(out)
        return self._measured({r.metric: r for one in subjects for r in self._known(one)})

    def _known(self, subject: Mapping[str, Any]) -> list[Record]:
        key = record_key(subject)
        return [r for r in self.store.find(study=STUDY) if r.key == key]

    def _keep(self, out: Path, digest: str, subject: Mapping[str, Any], clock: Clock) -> None:
        """Measure a candidate on the text, or if the subject has tasks on them."""
        found = self._on_tasks(out) if "tasks" in subject else self._on_text(out)
        size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
        made = provenance(clock)
        common = {
            "study": STUDY, "key": record_key(subject), "subject": dict(subject),
            "confidence": CONFIDENCE, "plan": digest,
            "data": ",".join(subject["questions"]) if "tasks" in subject else self.texts.digest,
            "seed": self.ingredients.seed, "detail": {"file_bytes": size}, **made,
        }  # fmt: skip
        self.store.add(
            Record(metric=name, value=each.value, lower=each.low, upper=each.high, **common)
            for name, each in found.items()
        )

    def _on_text(self, out: Path) -> dict[str, Interval]:
        comparison = self.compare(load_model(out)).comparison
        assert comparison is not None, "compared with the reference"
        return {name: getattr(comparison, name) for name in TEXT_METRICS}

    def _on_tasks(self, out: Path) -> dict[str, Interval]:
        assert self.exam is not None, "a subject has tasks only if there are some"
        return {"recovery_percent": self.exam.recovery(Run(model=out))}

    def _measured(self, records: Mapping[str, Record]) -> Measured:
        found = {
            name: Interval(low=r.lower or 0.0, value=r.value, high=r.upper or 0.0)
            for name, r in records.items()
        }
        kl, change = (found[name] for name in TEXT_METRICS)
        kept = found.get("recovery_percent")
        loss = lost(kept) if kept else change if self.budget.name == "ppl" else kl
        return Measured(
            loss=loss, kl_nats=kl, perplexity_change_percent=change, recovery_percent=kept,
            plan=records["kl_nats"].plan, file_bytes=records["kl_nats"].detail["file_bytes"],
            data=self.texts.digest, tokens=self.texts.scored,
        )  # fmt: skip

    def _nothing(self) -> Measured:
        """What leaving everything as it is loses."""
        size = sum(parameter.nbytes for parameter in self.reference.parameters())
        kept = None if self.exam is None else self.exam.best
        return Measured(
            loss=lost(kept) if kept else NOTHING, kl_nats=NOTHING,
            perplexity_change_percent=NOTHING, recovery_percent=kept, file_bytes=size,
            data=self.texts.digest, tokens=self.texts.scored,
        )  # fmt: skip

    def compare(self, model: PreTrainedModel) -> Evaluation:
        """A model against the reference; a document is scored on one thread, whatever `threads`
        is."""
        settings, reference = self.texts.settings, self._remembered
        logits = logits_of(model)
        with start_workers(self.threads) as workers:
            parts = workers.map(
                lambda document: score_documents(
                    logits, [document], context=settings.context or 0, stride=settings.stride,
                    reference=reference,
                ),
                self.texts.tokens,
            )  # fmt: skip
        return replace(summarize(joined(parts), settings), digest=self.texts.digest)

    @cached_property
    def reference(self) -> PreTrainedModel:
        """The untouched model, in memory from the first candidate on: while units are measured the
        models of their trials are."""
        path = resolve_model(self.ingredients.model)
        return load_model(path, trust_remote_code=self.ingredients.trust_remote_code)

    @cached_property
    def _remembered(self) -> Reference:
        return Reference(self.reference, self.folder)

    def noise(self) -> Interval:
        """What the reference loses against itself in the 16-bit type that engines run it in: no
        smaller loss means anything."""
        dtype = self.reference.config.dtype
        served = torch.float16 if dtype == torch.float16 else torch.bfloat16
        if self.exam is not None:
            return lost(self.exam.recovery(Run(model=self.ingredients.model, dtype=served)))
        model = load_model(
            self.ingredients.model, served, trust_remote_code=self.ingredients.trust_remote_code
        )
        return self.budget.observed(self.compare(model))


def matches(unit: UnitLoss, tensors: tuple[str, ...]) -> list[str]:
    """Globs that match the tensors of a unit and no others: their names, and for the experts of a
    block one with a star for their number."""
    starred: dict[str, list[str]] = {}
    for tensor in unit.tensors:
        head, found, rest = _after_block(tensor)
        pattern = glob.escape(head + found) + re.sub(r"\.\d+\.", ".*.", glob.escape(rest))
        starred.setdefault(pattern, []).append(tensor)
    globs = []
    for pattern, mine in starred.items():
        matched = [name for name in tensors if fnmatch.fnmatchcase(name, pattern)]
        globs += [pattern] if matched == mine else [glob.escape(name) for name in mine]
    return globs


def _after_block(tensor: str) -> tuple[str, str, str]:
    """A name cut after its first number, which is that of the block."""
    found = re.search(r"\.\d+\.", tensor)
    if found is None:
        return tensor, "", ""
    return tensor[: found.start()], found[0], tensor[found.end() :]
