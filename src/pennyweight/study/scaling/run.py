"""Carry out a scaling study: every trial that the store does not hold yet.

The process that runs this decides which units are low in every trial and writes the records; an
engine measures the mixes. So no trial is recorded twice, and none depends on who measured it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pennyweight.allocate.base import Option, Problem
from pennyweight.allocate.base import Unit as Choosing
from pennyweight.allocate.exact import Exact
from pennyweight.core import FormatError, Progress
from pennyweight.core.record import Record, record_key
from pennyweight.evaluate import Interval
from pennyweight.evaluate.intervals import CONFIDENCE
from pennyweight.formats.schemes import UNTOUCHED, parse_scheme
from pennyweight.model.engine import Engine, Local, threads_of
from pennyweight.model.workers import start_workers
from pennyweight.model.writer import disk_errors
from pennyweight.records import Store
from pennyweight.study.bank import Bank
from pennyweight.study.planning.candidate import figures
from pennyweight.study.planning.costs import code_bits
from pennyweight.study.scaling.cells import Cell, cells_of
from pennyweight.study.scaling.design import (
    Part,
    ScalingStudy,
    draw,
    low_bits,
    parts,
    share_of,
    text_of,
)
from pennyweight.study.scaling.measure import Measure, Mix, Outcome, bank_of
from pennyweight.study.sensitivity.table import Loss, Sensitivity, UnitLoss, check_finite
from pennyweight.study.units import Unit, units

METRICS = ("kl_nats", "perplexity_change_percent")


def run_scaling(
    study: ScalingStudy,
    store: Store,
    work: Path,
    *,
    engine: Engine | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> int:
    """Measure what is missing; returns how many trials that were.

    work: a folder for the quantized weights, one that every process of the engine sees. `threads`
    and the engine change the time and nothing else.
    """
    progress, engine = progress or Progress(), engine or Local()
    with disk_errors(work):
        work.mkdir(parents=True, exist_ok=True)
    measure, count = Measure(study, work.resolve(), threads_of(engine, threads)), 0
    try:
        for model in study.models:
            wanted = [part for part in parts(study) if part.model == model]
            if wanted:
                with start_workers(threads) as workers:
                    bank = bank_of(study, model, work, workers, progress, engine)
                count += Searches(study, bank, store, progress).run(wanted, engine, measure)
    finally:
        measure.close()
    return count


def collect(study: ScalingStudy, store: Store) -> list[Cell]:
    """The searches of the study that are in the store. Raises DataError if there are none."""
    wanted = {
        (part.model, part.format, part.granularity, part.search, part.ratio)
        for part in parts(study)
    }
    found = cells_of(store.find(study=study.name), f"{store.path}: study {study.name!r}")
    return [
        cell for cell in found
        if (cell.model, cell.format, cell.granularity, cell.search, cell.asked) in wanted
    ]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A mix that a search came up with, and what the study knows of it."""

    subject: Mapping[str, Any]
    mix: Mix
    detail: Mapping[str, Any]

    @property
    def key(self) -> str:
        return record_key(self.subject)


@dataclass(frozen=True)
class Searches:
    """All searches of one model."""

    study: ScalingStudy
    bank: Bank
    store: Store
    progress: Progress

    def run(self, wanted: Sequence[Part], engine: Engine, measure: Measure) -> int:
        search = [part for part in wanted if part.search == "random"]
        drawn = [trial for part in search for trial in self._random(part)]
        count = self._measure(drawn, engine, measure)
        exact = [part for part in wanted if part.search == "exact"]
        kinds = dict.fromkeys((part.format, part.granularity) for part in exact)
        self._measure([one for kind in kinds for one in self._alone(*kind)], engine, measure)
        losses = {
            r.key: r.value
            for r in self.store.find(study=self.study.name, metric="kl_nats")
            if r.subject["search"] == "single"
        }
        return count + self._measure([self._exact(p, losses) for p in exact], engine, measure)

    def _measure(self, trials: Sequence[Trial], engine: Engine, measure: Measure) -> int:
        """Of those that are not in the store; equal mixes are measured once, each is recorded."""
        done = self.store.keys(self.study.name)
        owners: dict[Mix, dict[str, Trial]] = {}
        for trial in trials:
            if trial.key not in done:
                owners.setdefault(trial.mix, {})[trial.key] = trial
        count = sum(map(len, owners.values()))
        if len(trials) > count:
            self.progress.say(f"{len(trials) - count} of {len(trials)} are there already")
        for number, outcome in enumerate(engine.map(measure, list(owners)), 1):
            found = owners[outcome.mix].values()
            self.store.add(r for trial in found for r in self._records(trial, outcome))
            said = f"{outcome.mix.model} in {outcome.mix.format}"
            self.progress.measured(said, done=number, total=len(owners))
        return count

    def _records(self, trial: Trial, outcome: Outcome) -> Iterator[Record]:
        for metric in METRICS:
            interval: Interval = getattr(outcome, metric)
            where = f"{outcome.mix.model} at {trial.detail['quantization_ratio']:.3f}"
            check_finite(interval.value, self.study.name, where, outcome.mix.format)
            has_ends = math.isfinite(interval.low) and math.isfinite(interval.high)
            yield Record(
                study=self.study.name, key=trial.key, subject=trial.subject, metric=metric,
                value=interval.value, lower=interval.low if has_ends else None,
                upper=interval.high if has_ends else None,
                confidence=CONFIDENCE if has_ends else None,
                plan=self.bank.plan(outcome.mix.format), data=outcome.data,
                seed=self.study.seed, detail=trial.detail, **outcome.made,
            )  # fmt: skip

    def _units(self, format: str, granularity: str) -> tuple[Unit, ...]:
        """Raises FormatError where a unit cannot take the format: its Q_r would be another one."""
        granularity, *also = granularity.split("+")
        found = units(self.bank.survey, granularity, also)
        for tensor in (tensor for unit in found for tensor in unit.tensors):
            if not self.bank.takes(tensor, format):
                why = self.bank.fault(tensor, format)
                raise FormatError(
                    f"{self.bank.ingredients.model}: {tensor}: {why}; leave the format out for "
                    "this model with a `models` key in its grid"
                )
        return found

    def _common(self, format: str) -> dict[str, Any]:
        return {
            "model": self.bank.ingredients.model, "fingerprint": self.bank.fingerprint,
            "format": format, "quantizer": self.study.quantizer, "bank": self.bank.identity(format),
        }  # fmt: skip

    def _alone(self, format: str, granularity: str) -> Iterator[Trial]:
        """Every unit by itself in low precision, on the text for choosing."""
        found = self._units(format, granularity)
        for unit in found:
            mix = Mix(model=self.bank.ingredients.model, format=format, tensors=unit.tensors,
                      text="sense")  # fmt: skip
            yield Trial(
                subject=self._single(format, unit), mix=mix,
                detail=self._detail(found, {unit.name}, mix),
            )  # fmt: skip

    def _single(self, format: str, unit: Unit) -> dict[str, Any]:
        return {
            **self._common(format), "search": "single", "tensors": list(unit.tensors),
            "text": text_of(self.study.sense),
        }  # fmt: skip

    def _subject(self, part: Part, search: str, trial: int) -> dict[str, Any]:
        return {
            **self._common(part.format), "granularity": part.granularity, "ratio": part.ratio,
            "search": search, "trial": trial, "seed": self.study.seed,
            "text": text_of(self.study.evaluate),
        }  # fmt: skip

    def _random(self, part: Part) -> Iterator[Trial]:
        found = self._units(part.format, part.granularity)
        sizes = {unit.name: self._parameters(unit) for unit in found}
        for number in range(self.study.trials):
            key = (self.study.seed, self.bank.fingerprint, part.format, part.granularity,
                   part.ratio, number)  # fmt: skip
            low = set(draw(sizes, part.ratio, key))
            yield self._trial(part, found, low, self._subject(part, "random", number))

    def _exact(self, part: Part, losses: Mapping[str, float]) -> Trial:
        """The units of least summed loss that hold at least this share of the parameters, and of
        those without parameters the same share by number."""
        found = self._units(part.format, part.granularity)
        chosen = self._cheapest(part, found, losses)
        subject = self._subject(part, "exact", 0) | {"sense": text_of(self.study.sense)}
        return self._trial(part, found, chosen, subject)

    def _cheapest(self, part: Part, found: Sequence[Unit], losses: Mapping[str, float]) -> set[str]:
        offers, weightless = [], dict[str, float]()
        for unit in found:
            loss = losses[record_key(self._single(part.format, unit))]
            if not self._parameters(unit):
                weightless[unit.name] = loss
                continue
            low = Option(scheme=part.format, loss=loss, cost=0.0)
            high = Option(scheme=UNTOUCHED, loss=0.0, cost=float(self._parameters(unit)))
            offers.append(Choosing(name=unit.name, options=(low, high)))
        total = sum(map(self._parameters, found))
        problem = Problem(units=tuple(offers), minimise="loss", budget=(1 - part.ratio) * total)
        schemes = Exact()(problem).schemes
        order = sorted(weightless, key=lambda name: weightless[name])
        least = order[: share_of(len(order), part.ratio)]
        return {name for name, scheme in schemes.items() if scheme != UNTOUCHED} | set(least)

    def _trial(
        self, part: Part, found: Sequence[Unit], low: set[str], subject: Mapping[str, Any]
    ) -> Trial:
        tensors = tuple(t for unit in found if unit.name in low for t in unit.tensors)
        mix = Mix(model=part.model, format=part.format, tensors=tensors)
        return Trial(subject=subject, mix=mix, detail=self._detail(found, low, mix))

    def _detail(self, found: Sequence[Unit], low: set[str], mix: Mix) -> dict[str, Any]:
        """What the fits need: sizes, ratios and block size as they came out."""
        took = figures(
            {unit.name: mix.format if unit.name in low else UNTOUCHED for unit in found},
            self._table(found, mix.format), low_bits(mix.format, code_bits(mix.format)),
        )  # fmt: skip
        return {
            "parameters": self._model_parameters(),
            "parameters_considered": sum(map(self._parameters, found)),
            "units": len(found), "low": sorted(low),
            **self._operand_ratio(found, low),
            "quantization_ratio": took.quantization_ratio,
            "quantization_ratio_with_scales": took.quantization_ratio_with_scales,
            "bits_per_weight": took.bits_per_weight,
            "block_size": self._block_size(found, mix.format),
        }  # fmt: skip

    def _operand_ratio(self, found: Sequence[Unit], low: set[str]) -> dict[str, float]:
        """Of the units without parameters, how many are low; nothing if there are none."""
        names = {unit.name for unit in found if not self._parameters(unit)}
        return {"operand_ratio": len(names & low) / len(names)} if names else {}

    def _table(self, found: Sequence[Unit], format: str) -> Sensitivity:
        """Sizes alone; nothing looks at its losses."""
        bank = self.bank
        none = lambda unit, scheme: Loss(
            value=0.0, lower=None, upper=None,
            stored_bits=sum(bank.stored_bits(tensor, scheme) for tensor in unit.tensors),
        )  # fmt: skip
        return Sensitivity(
            model=bank.ingredients.model, fingerprint=bank.fingerprint, data="",
            quantizer=self.study.quantizer, estimator="", granularity="",
            units=tuple(
                UnitLoss(
                    name=unit.name, kind=unit.kind, tensors=unit.tensors,
                    parameters=self._parameters(unit),
                    options={scheme: none(unit, scheme) for scheme in (format, UNTOUCHED)},
                )
                for unit in found
            ),
        )  # fmt: skip

    def _parameters(self, unit: Unit) -> int:
        return sum(map(self.bank.parameters, unit.tensors))

    def _model_parameters(self) -> int:
        """Of the whole model as the checkpoint stores it: a tied embedding counts once."""
        tensors = self.bank.survey.skeleton.checkpoint.tensors.values()
        return sum(math.prod(tensor.shape) for tensor in tensors)

    def _block_size(self, found: Sequence[Unit], format: str) -> float:
        """Q_b: weights per scale, on average (for one scale a row or tensor that is how the paper
        counts)."""
        weight = parse_scheme(format).weight
        tensors = [t for unit in found for t in unit.tensors]
        shapes = [shape for t in tensors if (shape := self.bank.shape(t))]
        scales = sum(math.prod(weight.groups(*shape)) for shape in shapes)
        return sum(map(math.prod, shapes)) / scales
