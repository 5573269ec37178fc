"""From finished blocks to a finished directory: export, prove, rename. And the verb `export`."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import torch

from pennyweight.core import CheckpointError, FormatError, Progress
from pennyweight.export import TARGETS
from pennyweight.export.base import Linear, Part, Target
from pennyweight.export.card import Made, model_card
from pennyweight.export.checkpoint import write_checkpoint
from pennyweight.model.auto import auto_class
from pennyweight.model.checkpoint import Checkpoint
from pennyweight.model.experts import rejoin
from pennyweight.model.writer import disk_errors, replace_file, write_text
from pennyweight.pipeline.job import Job, prepare_plan
from pennyweight.pipeline.prove import PROOF, Evidence, prove_files
from pennyweight.pipeline.workdir import PLAN, WorkDir, digest


def export(
    work: str | Path,
    output: str | Path,
    *,
    model: str | None = None,
    target: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Make a checkpoint once more from a work directory that `quantize(keep_work=True)` left.

    target: another layout than the plan names. Returns the proof. Raises CheckpointError if a block
    is missing or `output` exists, FormatError if the target cannot hold the result.
    """
    work, output = Path(work), Path(output)
    if not (work / PLAN).is_file():
        raise CheckpointError(f"{work}: not a work directory: it holds no {PLAN}")
    job = prepare_plan(work / PLAN, model)
    refuse_existing(output, job)
    directory = WorkDir(work, job.plan)
    steps = job.survey.steps(job.plan.by_tensor)
    missing = [index for index in steps if not directory.is_done(index)]
    if missing:
        raise CheckpointError(
            f"{work}: block {missing[0]} is not finished ({len(missing)} such); "
            "repeat the quantize command to continue"
        )
    return finish(job, directory, output, progress or Progress(), target)


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


def finish(
    job: Job, work: WorkDir, output: Path, progress: Progress, target: str | None = None
) -> dict[str, Any]:
    """Export into the work directory, prove it there, rename it into place; returns the proof."""
    staged = work.path / "export"
    with disk_errors(staged):
        if staged.exists():
            shutil.rmtree(staged)
        staged.mkdir()
    facts: dict[str, dict[str, Any]] = {
        tensor: fact | {"block": index}
        for index in job.survey.steps(job.plan.by_tensor)
        for tensor, fact in work.facts(index).items()
    }
    linears = list(_linears(job, work, facts))
    layout = choose_target(target or job.plan.target, linears, progress)
    progress.say(f"writing the checkpoint ({layout})")
    changed = _changed(job, work)
    checkpoint = rejoin(job.survey.skeleton.checkpoint, facts.keys() | changed.keys())
    kept = _kept(job, facts)
    census = write_checkpoint(checkpoint, linears, kept, changed, staged, TARGETS[layout])
    progress.say("proving it")
    digests = _digests(linears, facts, TARGETS[layout])
    rewritten = {name: digest(part.make()) for name, part in changed.items()}
    evidence = Evidence(source=checkpoint, census=census, digests=digests, rewritten=rewritten)
    proof = prove_files(staged, evidence, trust_remote_code=job.plan.trust_remote_code)
    proof["size"] = _size(checkpoint, Checkpoint.open(staged), facts)
    calibration = job.calibration.description if job.calibration else None
    record = {
        "proof": proof, "plan": job.plan.digest, "calibration": calibration,
        "rewritten": rewritten, "transforms": _told(job, work),
        "linears": {name: _public(fact, digests[name]) for name, fact in facts.items()},
    }  # fmt: skip
    write_text(staged / PROOF, json.dumps(record, indent=1, sort_keys=True) + "\n")
    write_text(
        staged / PLAN, replace(job.plan, target=layout).dump() if target else job.plan.dump()
    )
    schemes = Counter(task.scheme for task in job.plan.tasks)
    loader = auto_class(job.survey.skeleton.model.config).__name__
    made = Made(
        model=job.plan.model, schemes=schemes, size=proof["size"], target=layout, loader=loader
    )
    card = model_card(made, proof=proof, calibration=calibration, fallbacks=_fallbacks(facts))
    write_text(staged / "README.md", card)
    with disk_errors(output):
        replace_file(staged, output)
    return proof


def _size(before: Checkpoint, after: Checkpoint, facts: dict[str, dict[str, Any]]) -> dict:
    """Bytes on disk, and the bits of everything that was computed for the quantized weights."""
    stored = sum(fact["bytes"] for fact in facts.values())
    weights = sum(prod(fact["shape"]) for fact in facts.values())
    return {
        "bytes_before": before.size_bytes,
        "bytes_after": after.size_bytes,
        "bits_per_weight": 8 * stored / weights,
    }


def choose_target(name: str, linears: list[Linear], progress: Progress) -> str:
    """`auto` is compressed-tensors where it can hold every linear, else our packed layout."""
    if name != "auto":
        return name
    try:
        for linear in linears:
            TARGETS["compressed-tensors"].parts(linear)
    except FormatError as error:
        progress.say(f"stored in the packed layout: {error}")
        return "packed"
    return "compressed-tensors"


def _kept(job: Job, facts: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Tensor -> why it is not quantized."""
    left = {site.tensor: "left by the recipe" for site in job.survey.sites}
    kept = {name: why for name, why in (left | job.survey.kept).items() if name not in facts}
    modules, tensors = _modules(job), job.survey.skeleton.checkpoint.tensors
    # An engine looks for what to leave alone by either name: `visual.x` is `model.visual.x` there.
    renamed = {
        f"{modules[name]}.weight": why
        for name, why in kept.items()
        if name in modules and len(tensors[name].shape) == 2 and not why.startswith("embedding")
    }
    return renamed | kept


def _modules(job: Job) -> dict[str, str]:
    """Tensor -> the module that has it as its weight, as transformers calls it."""
    return {
        source.key: name.removesuffix(".weight")
        for name, source in job.survey.skeleton.sources.items()
        if name.endswith(".weight")
    }


def _changed(job: Job, work: WorkDir) -> dict[str, Part]:
    """Tensors that transforms rewrote and nothing quantized."""
    return {
        name: Part(dtype, shape, lambda index=index, name=name: work.read_changed(index, name))
        for index in range(len(job.survey.topologies))
        for name, (dtype, shape) in work.changed(index).items()
    }


def _told(job: Job, work: WorkDir) -> list[str]:
    return [line for index in range(len(job.survey.topologies)) for line in work.told(index)]


def _linears(job: Job, work: WorkDir, facts: dict[str, dict[str, Any]]) -> Iterator[Linear]:
    tasks, skeleton = job.plan.by_tensor, job.survey.skeleton
    transposed = {source.key for source in skeleton.sources.values() if source.transposed}
    modules = _modules(job)
    for tensor, fact in facts.items():
        block, task, source = fact["block"], tasks[tensor], skeleton.checkpoint.tensors[tensor]
        yield Linear(
            name=tensor.removesuffix(".weight"),
            module=modules[tensor],
            scheme=job.plan.scheme(task),
            shape=tuple(fact["shape"]),
            dtype=source.dtype,
            transposed=tensor in transposed,
            part_of=None if source.whole is None else source.whole.name,
            is_head=job.survey.head is not None and tensor == job.survey.head.tensor,
            stored={part: (getattr(torch, t), tuple(s)) for part, (t, s) in fact["parts"].items()},
            read=lambda part, tensor=tensor, block=block: work.part(block, tensor, part),
            load=lambda tensor=tensor, block=block, task=task: work.load(block, tensor, task)[0],
        )


def _digests(
    linears: list[Linear], facts: dict[str, dict[str, Any]], target: Target
) -> dict[str, str]:
    """What each stored weight must decode to: what was computed, or what the target makes of
    it."""
    if target.exact:
        return {tensor: fact["digest"] for tensor, fact in facts.items()}
    return {
        f"{linear.name}.weight": digest(target.parts(linear)["weight"].make()) for linear in linears
    }


def _public(fact: dict[str, Any], digest: str) -> dict[str, Any]:
    """digest: of the weight as the files hold it."""
    shown = {key: fact[key] for key in ("loss", "metric", "tokens", "notes", "bytes")}
    return shown | {"digest": digest}


def _fallbacks(facts: dict[str, dict[str, Any]]) -> dict[str, str]:
    found = {name: list(_taken(fact["notes"])) for name, fact in facts.items()}
    return {name: "; ".join(taken) for name, taken in found.items() if taken}


def _taken(notes: dict[str, Any]) -> Iterator[str]:
    if "fallback" in notes:
        yield f"{notes['fallback']}: {notes['why']}"
    if "input_scale" in notes:
        yield f"input scale: {notes['input_scale']}"
