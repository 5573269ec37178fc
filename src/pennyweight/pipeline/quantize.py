"""The verb `quantize`: check, carry out, export, prove, and only then put the result in place."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pennyweight.core import CheckpointError, Progress
from pennyweight.export.card import model_card
from pennyweight.export.compressed_tensors import Linear, export
from pennyweight.model.workers import start_workers
from pennyweight.model.writer import replace_file, write_text
from pennyweight.pipeline.check import CheckReport, check_job
from pennyweight.pipeline.job import Job, prepare, prepare_plan
from pennyweight.pipeline.prove import Evidence, prove_files
from pennyweight.pipeline.recipe import Recipe
from pennyweight.pipeline.run import Run, peak_bytes
from pennyweight.pipeline.workdir import PLAN, WorkDir

PROOF = "proof.json"


@dataclass(frozen=True, kw_only=True)
class Result:
    """What `quantize` made."""

    path: Path
    check: CheckReport
    proof: dict[str, Any]
    elapsed_s: float
    peak_bytes: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "path": str(self.path), "check": self.check.to_dict(), "proof": self.proof,
            "elapsed_s": self.elapsed_s, "peak_bytes": self.peak_bytes,
        }  # fmt: skip


def quantize(
    recipe: Recipe | Path,
    output: str | Path,
    *,
    model: str | None = None,
    threads: int | None = None,
    keep_work: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Quantize a model as a Recipe (or a saved plan file) says, into the new directory `output`.

    Work goes into `<output>.work`, one file per finished block; after an interruption the same call
    continues there and ends with the same bytes. `model` says where the model of a plan is now.
    `threads` changes the time and nothing else. Raises a PennyweightError for anything a user can
    cause; `output` then does not exist.
    """
    started, progress, output = time.monotonic(), progress or Progress(), Path(output)
    job = prepare(recipe) if isinstance(recipe, Recipe) else prepare_plan(recipe, model)
    _refuse_existing(output, job)
    report = check_job(job)
    for warning in report.warnings:
        progress.say(warning)
    work = WorkDir.open(output, job.plan)
    with start_workers(threads) as workers:
        rows = None if job.calibration is None else job.calibration.ids
        run = Run(
            plan=job.plan,
            survey=job.survey,
            work=work,
            rows=rows,
            workers=workers,
            progress=progress,
        )
        run()
    proof = _finish(job, work, output, report, progress)
    if not keep_work:
        work.remove()
    elapsed = time.monotonic() - started
    return Result(
        path=output, check=report, proof=proof, elapsed_s=elapsed, peak_bytes=peak_bytes()
    )


def _refuse_existing(output: Path, job: Job) -> None:
    if not output.exists():
        return
    plan = output / PLAN
    if plan.is_file() and plan.read_text(encoding="utf-8") == job.plan.dump():
        raise CheckpointError(
            f"{output}: exists and holds the result of this very plan: nothing to do"
        )
    raise CheckpointError(f"{output}: exists; choose another output directory, or remove this one")


def _finish(job: Job, work: WorkDir, output: Path, report: CheckReport, progress: Progress):
    """Export into the work directory, prove it there, and rename it into place."""
    staged = work.path / "export"
    if staged.exists():
        shutil.rmtree(staged)
    staged.mkdir()
    facts = {
        tensor: fact | {"block": index}
        for index in range(len(job.survey.topologies))
        for tensor, fact in work.facts(index).items()
    }
    progress.say("writing the checkpoint")
    checkpoint = job.survey.skeleton.checkpoint
    census = export(checkpoint, list(_linears(job, work, facts)), job.survey.kept, staged)
    progress.say("proving it")
    evidence = Evidence(
        source=checkpoint, census=census, digests={name: f["digest"] for name, f in facts.items()}
    )
    proof = prove_files(staged, evidence, job.plan.trust_remote_code)
    calibration = job.calibration.description if job.calibration else None
    record = {
        "proof": proof, "plan": job.plan.digest, "calibration": calibration,
        "linears": {name: _public(fact) for name, fact in facts.items()},
    }  # fmt: skip
    write_text(staged / PROOF, json.dumps(record, indent=1, sort_keys=True) + "\n")
    write_text(staged / PLAN, job.plan.dump())
    card = model_card(
        model=job.plan.model, schemes=report.schemes,
        sizes=(report.bytes_before, report.bytes_after), proof=proof, calibration=calibration,
        fallbacks=_fallbacks(facts),
    )  # fmt: skip
    write_text(staged / "README.md", card)
    output.parent.mkdir(parents=True, exist_ok=True)
    replace_file(staged, output)
    return proof


def _linears(job: Job, work: WorkDir, facts: dict[str, dict[str, Any]]):
    tasks = job.plan.by_tensor
    for tensor, fact in facts.items():
        yield Linear(
            name=tensor.removesuffix(".weight"),
            scheme=job.plan.scheme(tasks[tensor]),
            shape=tuple(fact["shape"]),
            read=lambda part, tensor=tensor, index=fact["block"]: work.part(index, tensor, part),
        )


def _public(fact: dict[str, Any]) -> dict[str, Any]:
    return {key: fact[key] for key in ("loss", "metric", "tokens", "notes", "digest")}


def _fallbacks(facts: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {
        name: f"{fact['notes']['fallback']}: {fact['notes']['why']}"
        for name, fact in facts.items()
        if "fallback" in fact["notes"]
    }
