"""Carry out a study of calibration sets: every cell that the store does not hold yet."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from pennyweight.core import CheckpointError, Progress
from pennyweight.core.record import Record, record_key
from pennyweight.evaluate import Evaluation, Interval
from pennyweight.model.checkpoint import Checkpoint, read_json
from pennyweight.model.resolve import resolve_model
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
    threads: int | None = None,
    progress: Progress | None = None,
) -> int:
    """Measure what is missing; returns how many cells that were.

    The records of a cell are written together when it is done, so that a study that was stopped
    continues with the next one. Another process may work on the same store.
    """
    progress, done = progress or Progress(), store.keys(study.name)
    fingerprint = Checkpoint.open(resolve_model(study.model)).fingerprint
    wanted = [(cell, subject_of(study, cell, fingerprint)) for cell in cells(study)]
    missing = [(cell, s) for cell, s in wanted if record_key(s) not in done]
    if len(missing) < len(wanted):
        progress.say(f"{len(wanted) - len(missing)} of {len(wanted)} results are there already")
    for number, (cell, subject) in enumerate(missing, 1):
        progress.say(
            f"{number} of {len(missing)}: {cell.method} on {cell.set}, {cell.samples} samples, "
            f"seed {cell.seed}"
        )
        store.add(_measure(study, cell, subject, store.path.parent, threads))
    return len(missing)


def _measure(
    study: CalibrationStudy, cell: Cell, subject: dict, folder: Path, threads: int | None
) -> list[Record]:
    clock = Clock()
    with tempfile.TemporaryDirectory(prefix=".study-", dir=folder) as temporary:
        made = quantize(recipe_of(study, cell), Path(temporary) / "out", threads=threads)
        found = evaluate(
            made.path, against=study.model, data=study.evaluate.data,
            split_at=study.evaluate.split_at, settings=study.evaluate.settings,
        )  # fmt: skip
        return list(_records(study, subject, made, found, clock))


def _records(
    study: CalibrationStudy, subject: dict, made: Result, found: Evaluation, clock: Clock
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
