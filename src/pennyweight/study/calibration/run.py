"""Carry out a study of calibration sets: every cell that the store does not hold yet.

The process that runs this writes the records; an engine makes and measures the models.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pennyweight.core import CheckpointError, Progress
from pennyweight.core.record import Record, record_key
from pennyweight.evaluate import Evaluation, Interval
from pennyweight.model.checkpoint import Checkpoint, read_json
from pennyweight.model.engine import Engine, Local, threads_of
from pennyweight.model.resolve import resolve_model
from pennyweight.model.workers import start_workers
from pennyweight.pipeline.evaluate import evaluate
from pennyweight.pipeline.quantize import Result, quantize
from pennyweight.records import Clock, Store, provenance
from pennyweight.study.calibration.design import (
    CalibrationStudy,
    Cell,
    cells,
    recipe_of,
    subject_of,
)

METRICS = ("kl_nats", "perplexity", "perplexity_change_percent", "top1_agreement_percent")


def run_study(
    study: CalibrationStudy,
    store: Store,
    *,
    engine: Engine | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> int:
    """Measure what is missing; returns how many cells that were.

    The records of a cell are written together when it is done, so that a study that was stopped
    continues with the next one. Another process may work on the same store. `threads` and the
    engine change the time and nothing else.
    """
    progress, engine, done = progress or Progress(), engine or Local(), store.keys(study.name)
    fingerprint = Checkpoint.open(resolve_model(study.model)).fingerprint
    wanted = [(cell, subject_of(study, cell, fingerprint)) for cell in cells(study)]
    missing = [(cell, s) for cell, s in wanted if record_key(s) not in done]
    if len(missing) < len(wanted):
        progress.say(f"{len(wanted) - len(missing)} of {len(wanted)} results are there already")
    measure = Measure(
        study=study, folder=store.path.parent.resolve(), threads=threads_of(engine, threads)
    )
    progress.say(f"{len(missing)} models to be made and measured")
    for number, records in enumerate(engine.map(measure, missing), 1):
        store.add(records)
        cell = missing[number - 1][0]
        said = f"{cell.method} on {cell.set}, {cell.samples} samples, seed {cell.seed}"
        progress.measured(said, done=number, total=len(missing))
    return len(missing)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """(cell, its subject) -> its records. It can be sent to another process."""

    study: CalibrationStudy
    folder: Path  # where a model is while it is measured; every process must see the same one
    threads: int | None = None

    def __call__(self, item: tuple[Cell, Mapping[str, Any]]) -> list[Record]:
        (cell, subject), clock, on = item, Clock(), self.study.evaluate
        with tempfile.TemporaryDirectory(prefix=".study-", dir=self.folder) as temporary:
            made = quantize(
                recipe_of(self.study, cell), Path(temporary) / "out", threads=self.threads
            )
            with start_workers(1):  # products that are split over threads depend on their number
                found = evaluate(
                    made.path, against=self.study.model, data=on.data, split_at=on.split_at,
                    settings=on.settings,
                )  # fmt: skip
            return list(_records(self.study, subject, made, found, clock))


def _records(
    study: CalibrationStudy,
    subject: Mapping[str, Any],
    made: Result,
    found: Evaluation,
    clock: Clock,
) -> Iterator[Record]:
    assert found.comparison is not None, "every cell is measured against its model"
    proof, common = read_json(made.path / "proof.json"), provenance(clock)
    intervals: dict[str, Interval] = {
        "perplexity": found.perplexity,
        **{name: getattr(found.comparison, name) for name in METRICS if name != "perplexity"},
    }
    calibration = proof["calibration"] or {}
    for name in METRICS:
        interval = intervals[name]
        yield Record(
            study=study.name, key=record_key(subject), subject=subject, metric=name,
            value=interval.value, lower=_finite(interval.low), upper=_finite(interval.high),
            confidence=found.confidence, plan=proof["plan"], data=found.digest,
            seed=subject["seed"], detail={
                "calibration_digest": calibration.get("digest"),
                "calibration_note": calibration.get("note"),
                "calibration_warnings": calibration.get("warnings", []),
                "bits_per_weight": made.proof["size"]["bits_per_weight"],
            }, **common,
        )  # fmt: skip


def _finite(value: float) -> float | None:
    return value if value == value and abs(value) != float("inf") else None


def collect(study: CalibrationStudy, store: Store, metric: str) -> dict[Cell, float]:
    """The value of every cell. Raises CheckpointError if one is missing."""
    fingerprint = Checkpoint.open(resolve_model(study.model)).fingerprint
    values = {r.key: r.value for r in store.find(study=study.name, metric=metric)}
    found = {}
    for cell in cells(study):
        key = record_key(subject_of(study, cell, fingerprint))
        if key not in values:
            raise CheckpointError(
                f"{store.path}: holds no {metric} of {cell}; run the study to measure it"
            )
        found[cell] = values[key]
    return found
