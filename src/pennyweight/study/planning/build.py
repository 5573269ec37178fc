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
from pennyweight.model.load import load_model
from pennyweight.model.workers import start_workers
from pennyweight.pipeline.job import prepare
from pennyweight.pipeline.quantize import quantize
from pennyweight.pipeline.recipe import Recipe, Rule
from pennyweight.records import Clock, Store, provenance
from pennyweight.study.bank import Ingredients
from pennyweight.study.planning.budget import Budget
from pennyweight.study.planning.candidate import Measured
from pennyweight.study.sensitivity.table import Sensitivity, UnitLoss
from pennyweight.study.texts import Texts
from pennyweight.study.trial import Reference, joined, logits_of

STUDY = "plan"
NOTHING = Interval(low=0.0, value=0.0, high=0.0)


@dataclass(frozen=True, kw_only=True)
class Builder:
    """Builds assignments of one model and measures them on one text."""

    ingredients: Ingredients
    table: Sensitivity | None  # None until it is measured; only `noise` can do without
    budget: Budget
    texts: Texts
    reference: PreTrainedModel
    folder: Path  # for what is being built
    store: Store
    engine: str
    threads: int | None
    progress: Progress

    def recipe(self, schemes: Assignment) -> Recipe:
        """One rule for each tensor, in the order in which they run."""
        rules = [
            replace(rule, match=match)
            for unit in self.units
            for rule in [self._rule(schemes[unit.name])]
            for match in matches(unit, self.tensors)
        ]
        return replace(self.ingredients.recipe(rules), engine=self.engine)

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
        key = record_key(subject)
        known = [r for r in self.store.find(study=STUDY) if r.key == key]
        if not known:
            self._build(recipe, job.plan.digest, subject)
            known = [r for r in self.store.find(study=STUDY) if r.key == key]
        return self._measured({record.metric: record for record in known})

    def _build(self, recipe: Recipe, digest: str, subject: Mapping[str, Any]) -> None:
        clock, out = Clock(), self.folder / f"candidate-{digest[:12]}"
        if not out.exists():  # else an earlier run was stopped before it was measured
            quantize(recipe, out, threads=self.threads, progress=self.progress)
        evaluation = self.compare(load_model(out))
        size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
        assert evaluation.comparison is not None, "compared with the reference"
        made = provenance(clock)
        common = {
            "study": STUDY, "key": record_key(subject), "subject": dict(subject),
            "confidence": CONFIDENCE, "plan": digest, "data": self.texts.digest,
            "seed": self.ingredients.seed, "detail": {"file_bytes": size}, **made,
        }  # fmt: skip
        records = [
            Record(metric=name, value=found.value, lower=found.low, upper=found.high, **common)
            for name in ("kl_nats", "perplexity_change_percent")
            for found in [getattr(evaluation.comparison, name)]
        ]
        self.store.add(records)
        shutil.rmtree(out)

    def _measured(self, records: Mapping[str, Record]) -> Measured:
        kl, change = (
            Interval(low=r.lower or 0.0, value=r.value, high=r.upper or 0.0)
            for r in (records["kl_nats"], records["perplexity_change_percent"])
        )
        return Measured(
            loss=change if self.budget.name == "ppl" else kl,
            kl_nats=kl, perplexity_change_percent=change, plan=records["kl_nats"].plan,
            file_bytes=records["kl_nats"].detail["file_bytes"],
            data=self.texts.digest, tokens=self.texts.scored,
        )  # fmt: skip

    def _nothing(self) -> Measured:
        """What leaving everything as it is loses."""
        size = sum(parameter.nbytes for parameter in self.reference.parameters())
        return Measured(
            loss=NOTHING, kl_nats=NOTHING, perplexity_change_percent=NOTHING, file_bytes=size,
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
    def _remembered(self) -> Reference:
        return Reference(self.reference, self.folder)

    def noise(self) -> Interval:
        """What the reference loses against itself in the 16-bit type that engines run it in: no
        smaller loss means anything."""
        dtype = self.reference.config.dtype
        served = torch.float16 if dtype == torch.float16 else torch.bfloat16
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
