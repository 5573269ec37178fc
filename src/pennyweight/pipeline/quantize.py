"""The verb `quantize`: check, carry out, export, prove, and only then put the result in place."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pennyweight.core import Progress
from pennyweight.model.checkpoint import read_json
from pennyweight.model.engine import Engine, Local
from pennyweight.model.memory import peak_bytes
from pennyweight.model.workers import start_workers
from pennyweight.pipeline.check import CheckReport, check_job
from pennyweight.pipeline.finish import finish, is_finished, refuse_existing
from pennyweight.pipeline.job import Job, prepare, prepare_plan
from pennyweight.pipeline.prove import PROOF
from pennyweight.pipeline.recipe import Recipe
from pennyweight.pipeline.run import Run
from pennyweight.pipeline.spread import held_together
from pennyweight.pipeline.workdir import PLAN, WorkDir


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
    recipe: Recipe | Path | Job,
    output: str | Path,
    *,
    engine: Engine | None = None,
    threads: int | None = None,
    keep_work: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Quantize a model as a Recipe (or a saved plan file, or what was prepared from either) says,
    into the new directory `output`.

    Work goes into `<output>.work`, one file per finished block; after an interruption the same call
    continues there and ends with the same bytes. `threads` and the engine, in whose processes
    calibration samples pass through the blocks, change the time and nothing else. Raises a
    PennyweightError for anything a user can cause; `output` then does not exist.
    """
    started, progress, output = time.monotonic(), progress or Progress(), Path(output)
    engine, job = engine or Local(), _job(recipe)
    report = check_job(job)
    if is_finished(output, job) and (WorkDir.place(output) / PLAN).is_file():
        # An earlier run was stopped between the rename and its last clean-up.
        if not keep_work:
            WorkDir.open(output, job.plan).remove()
        return _result(output, report, read_json(output / PROOF)["proof"], started)
    refuse_existing(output, job)
    for warning in report.warnings:
        progress.say(warning)
    if not engine.is_local and (why := held_together(job.plan)):
        progress.say(why)
        engine = Local()
    _check_carried(job)
    work = WorkDir.open(output, job.plan)
    with start_workers(threads) as workers:
        rows = None if job.calibration is None else job.calibration.rows
        run = Run(
            plan=job.plan,
            survey=job.survey,
            work=work,
            rows=rows,
            workers=workers,
            progress=progress,
            engine=engine,
        )
        run()
    proof = finish(job, work, output, progress)
    if not keep_work:
        work.remove()
    return _result(output, report, proof, started)


def _job(recipe: Recipe | Path | Job) -> Job:
    if isinstance(recipe, Job):
        return recipe
    return prepare(recipe) if isinstance(recipe, Recipe) else prepare_plan(recipe)


def _result(output: Path, report: CheckReport, proof: dict[str, Any], started: float) -> Result:
    elapsed = time.monotonic() - started
    return Result(
        path=output, check=report, proof=proof, elapsed_s=elapsed, peak_bytes=peak_bytes()
    )


def _check_carried(job: Job) -> None:
    """Embeddings, head and norms are read here once: a NaN found at the end would cost the run."""
    skeleton = job.survey.skeleton
    used = {source.key for source in skeleton.sources.values()}
    for name in used & set(job.survey.kept):
        skeleton.checkpoint.read_finite(name)
