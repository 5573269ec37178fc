"""What it takes to make a sensitivity table: a bank, a text, and what was measured before."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from pennyweight.core import FormatError, Progress
from pennyweight.core.record import Record, record_key
from pennyweight.evaluate import Settings
from pennyweight.evaluate.intervals import CONFIDENCE
from pennyweight.formats.schemes import UNTOUCHED
from pennyweight.model.engine import Engine, Local, threads_of
from pennyweight.model.workers import Workers, start_workers
from pennyweight.model.writer import disk_errors
from pennyweight.pipeline.recipe import make_from
from pennyweight.records import Store, provenance
from pennyweight.study.bank import Bank, Ingredients
from pennyweight.study.beside import OPERANDS, operand_format
from pennyweight.study.sensitivity.estimators import ESTIMATORS
from pennyweight.study.sensitivity.estimators.base import Bench, Contextual, Estimate
from pennyweight.study.sensitivity.estimators.direct import Direct
from pennyweight.study.sensitivity.table import Loss, Sensitivity, UnitLoss, check_finite
from pennyweight.study.texts import read_texts
from pennyweight.study.trial import Swaps, Trials
from pennyweight.study.units import Unit, units

STUDY = "sense"
LONG_S = 3600.0  # what takes longer is told beforehand
TEXT = ("stdlib",)  # not the held-out half: a plan is proved on text that it was not made with


def text_settings() -> Settings:
    """The start of each of many documents says more than the whole of a few."""
    return Settings(max_tokens=16384, document_tokens=512)


@dataclass(frozen=True, kw_only=True)
class Request:
    """Everything that decides the numbers of a table."""

    ingredients: Ingredients
    schemes: tuple[str, ...]
    granularity: str = "fused"
    also: tuple[str, ...] = ()  # kinds of `study.beside`
    operands: tuple[str, ...] = ("int8",)  # formats of those kinds that have no weights
    estimator: str = "direct"
    options: Mapping[str, Any] = field(default_factory=dict)  # fields of the estimator
    data: tuple[str, ...] = TEXT
    split_at: str | None = None
    settings: Settings = field(default_factory=text_settings)


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where a table goes, and what is made on the way."""

    output: Path  # the table
    bank: Path | None = None  # a folder in which the quantized weights stay, for the next table
    records: Path | None = None  # a file to which the measurements are added
    keep_work: bool = False  # the folder `<output>.work`, else deleted in the end


@dataclass(frozen=True)
class Sensing:
    """A request brought together with its bank, its text, and what was measured before."""

    request: Request
    bench: Bench
    units: tuple[Unit, ...]
    store: Store

    @classmethod
    @contextmanager
    def open(
        cls,
        request: Request,
        work: Path,
        *,
        places: Places | None = None,
        engine: Engine | None = None,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Sensing]:
        """work: a folder for what an interrupted run continues from; bank and records are in it
        unless `places` has them elsewhere. Raises all that quantizing and reading text raise."""
        progress, engine = progress or Progress(), engine or Local()
        with disk_errors(work):
            work.mkdir(parents=True, exist_ok=True)
        bank = (places and places.bank) or work / "bank"
        store = Store.open((places and places.records) or work / "records.sqlite")
        ESTIMATORS[request.estimator]  # an unknown name before anything is done
        with start_workers(threads) as workers:
            filled = _bank(request, bank, workers, progress, engine)
            found = units(filled.survey, request.granularity, request.also)
            bench = Bench(
                bank=filled, trials=_trials(request, filled, workers, work), folder=work,
                workers=workers, seed=request.ingredients.seed, progress=progress, engine=engine,
                opening=partial(opened, request, filled.folder, threads_of(engine, threads)),
            )  # fmt: skip
            yield cls(request, bench, found, store)

    def wanted(self) -> list[tuple[Unit, str]]:
        """Each unit with each scheme that all of its tensors can take.

        Raises FormatError for a scheme that fits no unit.
        """
        bank, found, faults = self.bench.bank, [], dict[str, str]()
        for unit in self.units:
            for scheme in self._candidates(unit):
                odd = [tensor for tensor in unit.tensors if not bank.takes(tensor, scheme)]
                if odd:
                    faults.setdefault(scheme, bank.fault(odd[0], scheme))
                else:
                    found.append((unit, scheme))
        for scheme, fault in faults.items():
            if all(name != scheme for _, name in found):
                raise FormatError(f"no unit can take it as a whole: {fault}")
        return found

    @property
    def schemes(self) -> tuple[str, ...]:
        """Everything that some unit is tried in, without W16A16."""
        return tuple(dict.fromkeys(scheme for unit in self.units for scheme in
                                   self._candidates(unit)))  # fmt: skip

    def _candidates(self, unit: Unit) -> tuple[str, ...]:
        return self.request.operands if unit.kind in OPERANDS else self.bench.bank.schemes

    def estimate(self, name: str, options: Mapping[str, Any]) -> list[Record]:
        """The records of every wanted estimate, in order; those that exist are not made again.

        Raises NumericalError naming the unit for a value that is not finite.
        """
        make, known = make_from(ESTIMATORS, name, options, "sense"), self._known()
        around = {"around": make.context(self.bench)} if isinstance(make, Contextual) else {}
        subjects = {
            (unit.name, scheme): self._subject(unit, scheme, name, make) | around
            for unit, scheme in self.wanted()
        }
        keys = {place: record_key(subject) for place, subject in subjects.items()}
        todo = [(u, s) for u, s in self.wanted() if keys[u.name, s] not in known]
        if make.together and todo:
            todo = self.wanted()
        if todo:
            self.bench.progress.say(f"{name}: {len(todo)} estimates, {make.cost}")
        spent = Meter(self.bench)
        for number, one in enumerate(make(self.bench, todo) if todo else (), 1):
            check_finite(one.value, name, one.unit.name, one.scheme)
            cost = spent.lap()
            if number == 1 and not make.together:
                self._warn_of_hours(name, cost["wall_s"] * (len(todo) - 1))
            record = self._record(subjects[one.unit.name, one.scheme], one, cost)
            if record.key not in known:
                self.store.add([record])
                known[record.key] = record
            if not make.together:  # those come all at once: nobody waits for the next
                found = f"{one.unit.name} {one.scheme}: {one.value:.3g} nats"
                self.bench.progress.measured(found, done=number, total=len(todo))
        return [known[key] for key in keys.values()]

    def _warn_of_hours(self, name: str, ahead_s: float) -> None:
        """ahead_s: by one process, at the pace of the first estimate."""
        if ahead_s > LONG_S and self.bench.engine.is_local:
            cheap = " or ".join(n for n, one in ESTIMATORS.items() if one.together and n != name)
            self.bench.progress.say(
                f"{name}: some {ahead_s / 3600:.1f} hours at the pace of the first; {cheap} take "
                "about a pass a scheme, and --compare on less text says how well they rank"
            )

    def together(self, scheme: str) -> Record:
        """The KL of all units that can take a scheme in it at once; measured if it was not yet."""
        units = [unit for unit, name in self.wanted() if name == scheme]
        tensors = tuple(tensor for unit in units for tensor in unit.tensors)
        whole = Unit("all units", "all", tensors)
        subject = self._subject(whole, scheme, "direct", Direct())
        known, spent = self._known(), Meter(self.bench)
        if record := known.get(record_key(subject)):
            return record
        here = replace(self.bench, engine=Local())  # one trial is not worth a worker
        (one,) = Direct()(here, [(whole, scheme)])
        record = self._record(subject, one, spent.lap())
        self.store.add([record])
        return record

    def _known(self) -> dict[str, Record]:
        return {record.key: record for record in self.store.find(study=STUDY)}

    def _subject(self, unit: Unit, scheme: str, name: str, make: Any) -> dict[str, Any]:
        """Of what does not look at the other units, the table's granularity is no part: the same
        unit of another table was measured already."""
        bank, texts = self.bench.bank, self.bench.trials.texts
        return {
            "model": self.request.ingredients.model, "fingerprint": bank.fingerprint,
            "unit": unit.name, "tensors": list(unit.tensors), "scheme": scheme,
            "quantizer": bank.ingredients.quantizer, "bank": bank.identity(scheme),
            "estimator": name, "options": asdict(make), "seed": self.bench.seed,
            "data": texts.digest, "settings": asdict(texts.settings),
            "granularity": self.request.granularity if make.together else None,
        }  # fmt: skip

    def _record(
        self, subject: dict[str, Any], estimate: Estimate, cost: dict[str, float]
    ) -> Record:
        bank = self.bench.bank
        here: dict[str, Any] = {**provenance(), "wall_time_s": cost.pop("wall_s")}
        made = here | dict(estimate.made)
        return Record(
            study=STUDY, key=record_key(subject), subject=subject, metric="kl_nats",
            value=estimate.value, lower=estimate.lower, upper=estimate.upper,
            confidence=None if estimate.lower is None else CONFIDENCE,
            plan=bank.plan(estimate.scheme), data=self.bench.trials.texts.digest,
            seed=self.bench.seed, detail=cost, **made,
        )  # fmt: skip

    def table(self, records: list[Record]) -> Sensitivity:
        request, bank, texts = self.request, self.bench.bank, self.bench.trials.texts
        found = {(r.subject["unit"], r.subject["scheme"]): r for r in records}
        settings = {
            **asdict(texts.settings), "data": list(texts.data), "split_at": texts.split_at,
            "tokens": texts.scored, "schemes": list(self.schemes), "seed": self.bench.seed,
            "quantizer_options": dict(bank.ingredients.options),
            "train": [asdict(training) for training in bank.ingredients.train],
            "estimator_options": dict(request.options),
            "calibrate": asdict(bank.ingredients.calibrate) if bank.calibration else None,
            "calibration_digest": bank.calibration.digest if bank.calibration else None,
        }  # fmt: skip
        return Sensitivity(
            model=request.ingredients.model, fingerprint=bank.fingerprint, data=texts.digest,
            quantizer=bank.ingredients.quantizer, estimator=request.estimator,
            granularity=request.granularity, settings=settings,
            units=tuple(self._unit(unit, found) for unit in self.units),
        )  # fmt: skip

    def _unit(self, unit: Unit, found: Mapping[tuple[str, str], Record]) -> UnitLoss:
        bank = self.bench.bank
        bits = lambda scheme: sum(bank.stored_bits(tensor, scheme) for tensor in unit.tensors)
        options = {
            scheme: Loss(value=r.value, lower=r.lower, upper=r.upper, stored_bits=bits(scheme))
            for scheme in self._candidates(unit)
            if (r := found.get((unit.name, scheme)))
        }
        none = Loss(value=0.0, lower=0.0, upper=0.0, stored_bits=bits(UNTOUCHED))
        return UnitLoss(
            name=unit.name, kind=unit.kind, tensors=unit.tensors,
            parameters=sum(map(bank.parameters, unit.tensors)),
            options={**options, UNTOUCHED: none},
        )  # fmt: skip


@contextmanager
def opened(request: Request, bank: Path, threads: int | None) -> Iterator[Trials]:
    """The trials of a request whose bank another process has filled."""
    with start_workers(threads) as workers:
        filled = _bank(request, bank, workers)
        yield _trials(request, filled, workers, bank)


def _bank(
    request: Request,
    folder: Path,
    workers: Workers,
    progress: Progress | None = None,
    engine: Engine | None = None,
) -> Bank:
    """Raises UnknownNameError, UnsupportedError for a format of operands that is none, before
    anything is quantized."""
    for kind in OPERANDS:
        for name in request.operands if kind in request.also else ():
            operand_format(name, kind)
    given = replace(request.ingredients, also=request.also)
    return Bank.make(given, request.schemes, folder, workers, progress, engine)


def _trials(request: Request, bank: Bank, workers: Workers, folder: Path) -> Trials:
    swaps = Swaps.load(bank)
    texts = read_texts(
        bank.path, swaps.model, request.data, split_at=request.split_at, settings=request.settings
    )
    return Trials(swaps, texts, workers, folder)


class Meter:
    """What a bench spends between one lap and the next."""

    def __init__(self, bench: Bench) -> None:
        self._bench, self._before, self._started = bench, self._now(bench), time.monotonic()

    def lap(self) -> dict[str, float]:
        now, ended = self._now(self._bench), time.monotonic()
        cost = {f"{name}_tokens": now[name] - self._before[name] for name in now}
        cost["wall_s"] = ended - self._started
        self._before, self._started = now, ended
        return cost

    @staticmethod
    def _now(bench: Bench) -> dict[str, float]:
        return asdict(bench.spent)
