"""From finished blocks to a finished directory: export, prove, rename. And the verb `export`."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from pennyweight.core import CheckpointError, Progress
from pennyweight.export.card import model_card
from pennyweight.export.compressed_tensors import Linear
from pennyweight.export.compressed_tensors import export as write_checkpoint
from pennyweight.model.checkpoint import Checkpoint
from pennyweight.model.writer import disk_errors, replace_file, write_text
from pennyweight.pipeline.job import Job, prepare_plan
from pennyweight.pipeline.prove import PROOF, Evidence, prove_files
from pennyweight.pipeline.workdir import PLAN, WorkDir


def export(
    work: str | Path,
    output: str | Path,
    *,
    model: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Make a checkpoint once more from a work directory that `quantize(keep_work=True)` left.

    Returns the proof. Raises CheckpointError if a block is missing or `output` exists.
    """
    work, output = Path(work), Path(output)
    if not (work / PLAN).is_file():
        raise CheckpointError(f"{work}: not a work directory: it holds no {PLAN}")
    job = prepare_plan(work / PLAN, model)
    refuse_existing(output, job)
    directory = WorkDir(work, job.plan)
    missing = [i for i in range(len(job.survey.topologies)) if not directory.is_done(i)]
    if missing:
        raise CheckpointError(
            f"{work}: block {missing[0]} is not finished ({len(missing)} such); "
            "repeat the quantize command to continue"
        )
    return finish(job, directory, output, progress or Progress())


def refuse_existing(output: Path, job: Job) -> None:
    """Raises CheckpointError if there is anything at `output`; nothing is ever written over."""
    if not os.path.lexists(output):  # a dangling link would be in the way as well
        return
    if is_finished(output, job):
        raise CheckpointError(
            f"{output}: exists and holds the result of this very plan: nothing to do"
        )
    raise CheckpointError(f"{output}: exists; choose another output directory, or remove this one")


def is_finished(output: Path, job: Job) -> bool:
    """Whether `output` is the result of this plan; it appears under that name only when it is."""
    plan = output / PLAN
    return plan.is_file() and plan.read_bytes() == job.plan.dump().encode()


def finish(job: Job, work: WorkDir, output: Path, progress: Progress) -> dict[str, Any]:
    """Export into the work directory, prove it there, rename it into place; returns the proof."""
    staged = work.path / "export"
    with disk_errors(staged):
        if staged.exists():
            shutil.rmtree(staged)
        staged.mkdir()
    facts: dict[str, dict[str, Any]] = {
        tensor: fact | {"block": index}
        for index in range(len(job.survey.topologies))
        for tensor, fact in work.facts(index).items()
    }
    progress.say("writing the checkpoint")
    checkpoint = job.survey.skeleton.checkpoint
    census = write_checkpoint(checkpoint, list(_linears(job, work, facts)), job.survey.kept, staged)
    progress.say("proving it")
    evidence = Evidence(
        source=checkpoint, census=census, digests={name: f["digest"] for name, f in facts.items()}
    )
    proof = prove_files(staged, evidence, trust_remote_code=job.plan.trust_remote_code)
    calibration = job.calibration.description if job.calibration else None
    record = {
        "proof": proof, "plan": job.plan.digest, "calibration": calibration,
        "linears": {name: _public(fact) for name, fact in facts.items()},
    }  # fmt: skip
    write_text(staged / PROOF, json.dumps(record, indent=1, sort_keys=True) + "\n")
    write_text(staged / PLAN, job.plan.dump())
    card = model_card(
        model=job.plan.model, schemes=Counter(task.scheme for task in job.plan.tasks),
        sizes=(checkpoint.size_bytes, Checkpoint.open(staged).size_bytes), proof=proof,
        calibration=calibration, fallbacks=_fallbacks(facts),
    )  # fmt: skip
    write_text(staged / "README.md", card)
    with disk_errors(output):
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
