"""What a report is made from: quantized directories, stores of records, and files of other verbs.

Everything is read and checked here, before a page is begun.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pennyweight.core import CheckpointError, DataError
from pennyweight.core.fields import first_fault
from pennyweight.core.record import Record
from pennyweight.evaluate.verdict import DEFAULT_BUDGET_PERCENT
from pennyweight.model.checkpoint import Checkpoint, read_json
from pennyweight.model.opened import QuantizedCheckpoint, open_checkpoint
from pennyweight.pipeline.plan import Plan, load_plan
from pennyweight.pipeline.prove import PROOF
from pennyweight.pipeline.workdir import PLAN
from pennyweight.records import Store
from pennyweight.report.files import (
    DiagnosisFile,
    EvaluationFile,
    FrontierFile,
    ProfileFile,
    ProofFile,
    Sample,
)

EVALUATION = "evaluation.json"  # in a quantized directory: what `pennyweight eval --json` printed
SAMPLES = "samples.jsonl"  # in it: what `pennyweight eval --similarity --samples` wrote


@dataclass(frozen=True, kw_only=True)
class Model:
    """A quantized directory."""

    path: Path
    name: str  # on the page; no two are the same
    checkpoint: Checkpoint | QuantizedCheckpoint
    fingerprint: str
    plan: Plan
    proof: ProofFile
    evaluation: EvaluationFile | None = None
    samples: tuple[Sample, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The files that a report is asked to show."""

    directories: Sequence[Path]
    records: Sequence[Path] = ()
    profile: Path | None = None
    plan: Path | None = None
    samples: Path | None = None
    diagnosis: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Material:
    """What these files hold."""

    models: tuple[Model, ...]
    records: tuple[Record, ...] = ()
    profile: ProfileFile | None = None
    frontier: FrontierFile | None = None
    diagnosis: DiagnosisFile | None = None
    samples: tuple[Sample, ...] = ()
    samples_from: str = ""
    budget_percent: float = DEFAULT_BUDGET_PERCENT  # of the perplexity, for the verdict
    command: str = ""
    stores: tuple[str, ...] = field(default=())


def gather(
    sources: Sources, *, budget_percent: float = DEFAULT_BUDGET_PERCENT, command: str = ""
) -> Material:
    """Raises CheckpointError, RecipeError or DataError naming the file that is not what it should
    be."""
    if not sources.directories:
        raise DataError("report: expected at least one directory that `pennyweight quantize` made")
    if not budget_percent >= 0:
        raise DataError(f"report: a budget of {budget_percent} %; expected a number from 0")
    names = _names(sources.directories)
    models = tuple(read_model(path, name) for path, name in names.items())
    records = [r for path in sources.records for r in Store.existing(path).find()]
    samples, samples_from = _samples_of(models, sources.samples)
    return Material(
        models=models,
        records=tuple({(r.study, r.key, r.metric): r for r in records}.values()),
        profile=None if sources.profile is None else _read(PROFILE, sources.profile),
        frontier=None if sources.plan is None else _read(FRONTIER, frontier_file(sources.plan)),
        diagnosis=None if sources.diagnosis is None else _read(DIAGNOSIS, sources.diagnosis),
        samples=samples,
        samples_from=samples_from,
        budget_percent=budget_percent,
        command=command,
        stores=tuple(map(str, sources.records)),
    )


def read_model(path: Path, name: str) -> Model:
    """Raises CheckpointError if the directory is none that `pennyweight quantize` made."""
    for file in (PROOF, PLAN):
        if not (path / file).is_file():
            raise CheckpointError(
                f"{path}: holds no {file}; expected a directory that `pennyweight quantize` made"
            )
    proof: ProofFile = _read(PROOF_ADAPTER, path / PROOF)
    evaluation = _read(EVALUATION_ADAPTER, path / EVALUATION) if _has(path, EVALUATION) else None
    return Model(
        path=path,
        name=name,
        checkpoint=open_checkpoint(path),
        fingerprint=Checkpoint.open(path).fingerprint,
        plan=load_plan(path / PLAN),
        proof=proof,
        evaluation=evaluation,
        samples=read_samples(path / SAMPLES) if _has(path, SAMPLES) else (),
    )


def read_samples(path: Path) -> tuple[Sample, ...]:
    """Lines of JSON with `prompt`, `model` and `reference`. Raises DataError naming the line."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    return tuple(
        _line(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()
    )


def frontier_file(plan: Path) -> Path:
    """The file with all candidates beside a plan; itself if it is one."""
    if plan.suffix == ".toml":
        return plan.with_name(f"{plan.name.removesuffix('.toml')}.frontier.json")
    return plan


PROOF_ADAPTER = TypeAdapter(ProofFile)
EVALUATION_ADAPTER = TypeAdapter(EvaluationFile)
PROFILE = TypeAdapter(ProfileFile)
FRONTIER = TypeAdapter(FrontierFile)
DIAGNOSIS = TypeAdapter(DiagnosisFile)
SAMPLE = TypeAdapter(Sample)
MADE_BY = {
    id(PROOF_ADAPTER): "`pennyweight quantize`",
    id(EVALUATION_ADAPTER): "`pennyweight eval MODEL --against REFERENCE --json`",
    id(PROFILE): "`pennyweight profile MODEL --json`",
    id(DIAGNOSIS): "`pennyweight diagnose REFERENCE MODEL --json`",
    id(FRONTIER): "`pennyweight plan` (plan.toml, or the .frontier.json beside it)",
}


def _has(path: Path, name: str) -> bool:
    return (path / name).is_file()


def _names(directories: Sequence[Path]) -> dict[Path, str]:
    """Directory -> the shortest end of its path that no other has."""
    paths = {path.resolve(): path for path in directories}
    if len(paths) < len(directories):
        raise DataError("report: a directory is named twice; name each once")
    found = {}
    for resolved, path in paths.items():
        others = [other.parts for other in paths if other != resolved]
        count = 1
        while any(other[-count:] == resolved.parts[-count:] for other in others):
            count += 1
        found[path] = str(Path(*resolved.parts[-count:]))
    return found


def _read(adapter: TypeAdapter, path: Path) -> Any:
    """A JSON file checked into its dataclass. Raises CheckpointError."""
    data = read_json(path) if path.is_file() else _missing(path, MADE_BY[id(adapter)])
    return _typed(adapter.validate_python, data, f"{path}: not what {MADE_BY[id(adapter)]} makes")


def _missing(path: Path, made_by: str) -> Any:
    raise CheckpointError(f"{path}: no such file; expected what {made_by} makes")


def _typed(check: Callable[[Any], Any], data: Any, where: str) -> Any:
    try:
        return check(data)
    except ValidationError as error:
        fault = first_fault(error)
        raise CheckpointError(
            f"{where}: {fault.place}: {fault.message}, found {fault.found!r:.60}; was "
            "it made by another version?"
        ) from None


def _line(line: str, where: str) -> Sample:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}") from None
    try:
        return SAMPLE.validate_python(data)
    except ValidationError as error:
        fault = first_fault(error)
        raise DataError(
            f"{where}: {fault.place}: {fault.message}; expected a line of "
            "`pennyweight eval MODEL --against REFERENCE --similarity --samples FILE`"
        ) from None


def _samples_of(models: Sequence[Model], file: Path | None) -> tuple[tuple[Sample, ...], str]:
    """Of the file, else of the first directory that has some; and where they are from."""
    if file is not None:
        return read_samples(file), str(file)
    for model in models:
        if model.samples:
            return model.samples, model.name
    return (), ""
