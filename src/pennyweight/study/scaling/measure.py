"""One trial of a scaling study: a mix of one format and high precision, measured.

A trial is a function of the study and of the mix alone. What it needs (model, bank, texts) is
opened once by each process that measures, and exchanged when the next trial is of another model.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pennyweight.core.record import record_key
from pennyweight.evaluate import Interval
from pennyweight.model.resolve import resolve_model
from pennyweight.model.workers import start_workers
from pennyweight.records import Clock, provenance
from pennyweight.study.bank import Bank
from pennyweight.study.scaling.design import ScalingStudy, parts
from pennyweight.study.texts import read_texts
from pennyweight.study.trial import Swaps, Trials


@dataclass(frozen=True, kw_only=True)
class Mix:
    """What is measured: these tensors in this format, all others as they are."""

    model: str
    format: str
    tensors: tuple[str, ...]
    text: Literal["evaluate", "sense"] = "evaluate"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a mix lost against the untouched model."""

    mix: Mix
    kl_nats: Interval
    perplexity_change_percent: Interval
    data: str  # digest of the text's tokens
    made: dict[str, Any]  # provenance


class Measure:
    """Mix -> Outcome. Before it is first called it can be sent to another process."""

    def __init__(self, study: ScalingStudy, work: Path, threads: int | None = None) -> None:
        """work: the folder of the banks; every process must see the same one."""
        self.study, self.work, self.threads = study, work, threads
        self._open = ExitStack()
        self._now: tuple[str, dict[str, Trials]] | None = None

    def __call__(self, mix: Mix) -> Outcome:
        clock = Clock()
        trials = self._trials(mix.model)[mix.text]
        trial = trials.measure(dict.fromkeys(mix.tensors, mix.format))
        found = trial.evaluation.comparison
        assert found is not None, "every trial has a reference"
        return Outcome(
            mix=mix, kl_nats=found.kl_nats,
            perplexity_change_percent=found.perplexity_change_percent,
            data=trial.evaluation.digest, made=provenance(clock),
        )  # fmt: skip

    def _trials(self, model: str) -> dict[str, Trials]:
        if self._now is None or self._now[0] != model:
            self.close()
            self._now = model, self._make(model)
        return self._now[1]

    def _make(self, model: str) -> dict[str, Trials]:
        workers = self._open.enter_context(start_workers(self.threads))
        bank = bank_of(self.study, model, self.work, workers)
        swaps = Swaps.load(bank)
        on = lambda text: read_texts(
            bank.path, swaps.model, text.data, split_at=text.split_at, settings=text.settings
        )
        first = Trials(swaps, on(self.study.evaluate), workers, bank.folder)
        if all(part.search == "random" for part in parts(self.study) if part.model == model):
            return {"evaluate": first}
        return {"evaluate": first, "sense": first.on(on(self.study.sense))}

    def close(self) -> None:
        """Let go of the model that is open."""
        self._now = None
        self._open.close()


def bank_of(
    study: ScalingStudy, model: str, work: Path, workers, progress=None, engine=None
) -> Bank:
    """The bank of a model, filled where it is not yet. Its folder is named after what is in it, so
    that another study finds another one."""
    ingredients = study.ingredients(model)
    mine = [part for part in parts(study) if part.model == model]
    also = tuple(dict.fromkeys(kind for part in mine for kind in part.also))
    key = record_key({
        "path": str(resolve_model(model).resolve()), "quantizer": study.quantizer,
        "options": dict(study.options), "seed": study.seed,
    })  # fmt: skip
    schemes = list(dict.fromkeys(part.format for part in mine))
    given = replace(ingredients, also=also)
    return Bank.make(given, schemes, work / key[:16], workers, progress, engine)
