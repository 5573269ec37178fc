"""A recipe brought together with its model: what `check` looks at and `quantize` carries out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from pennyweight.core import CheckpointError, DataError, RecipeError
from pennyweight.model.capture import max_tokens
from pennyweight.model.checkpoint import Checkpoint
from pennyweight.model.load import load_tokenizer, vocabulary
from pennyweight.model.resolve import resolve_model
from pennyweight.model.skeleton import Skeleton
from pennyweight.model.text import Calibration, calibration_samples
from pennyweight.pipeline.plan import Plan, load_plan, resolve_plan
from pennyweight.pipeline.recipe import Recipe
from pennyweight.pipeline.survey import Survey, survey


@dataclass(frozen=True, kw_only=True)
class Job:
    """A model, the plan for it, and the calibration text the plan asks for (None if it needs
    none)."""

    path: Path
    survey: Survey
    plan: Plan
    calibration: Calibration | None


def prepare(recipe: Recipe, *, read_text: bool = True) -> Job:
    """Open the model, resolve the plan, and (unless told not to) tokenize the calibration text.

    Reads headers and a page of each tensor, and weights only where a rule chooses between schemes.
    Raises every error that can be known now.
    """
    if not recipe.model:
        raise RecipeError("no model: name a directory or a Hub id")
    path = resolve_model(recipe.model)
    skeleton = Skeleton.build(Checkpoint.open(path), recipe.trust_remote_code)
    seen = survey(skeleton)
    plan = resolve_plan(recipe, seen)
    return _with_text(path, seen, plan) if read_text else Job(
        path=path, survey=seen, plan=plan, calibration=None
    )  # fmt: skip


def prepare_plan(file: Path, model: str | None = None) -> Job:
    """The job of a saved plan. Raises CheckpointError if the model is not the one it was made
    for."""
    plan = load_plan(file)
    path = resolve_model(model or plan.model)
    seen = survey(Skeleton.build(Checkpoint.open(path), plan.trust_remote_code))
    if seen.skeleton.checkpoint.fingerprint != plan.fingerprint:
        raise CheckpointError(f"{file}: was made for other weights or another config than {path}")
    known = {site.tensor for site in seen.sites}
    unknown = [task.tensor for task in plan.tasks if task.tensor not in known]
    if unknown:
        raise RecipeError(f"{file}: {unknown[0]} is not a linear of {path} that can be quantized")
    job = _with_text(path, seen, plan)
    if plan.calibration_digest and job.plan.calibration_digest != plan.calibration_digest:
        raise CheckpointError(f"{file}: the calibration text is not the one the plan was made with")
    return job


def _with_text(path: Path, seen: Survey, plan: Plan) -> Job:
    if plan.calibrate is None:
        return Job(path=path, survey=seen, plan=plan, calibration=None)
    data, limit = plan.calibrate, max_tokens(seen.skeleton)
    pretokenized = all(source.endswith(".json") for source in data.data)
    tokenizer = None if pretokenized else load_tokenizer(path, plan.trust_remote_code)
    calibration = calibration_samples(
        data.data, tokenizer, samples=data.samples, tokens=min(data.tokens, limit or data.tokens),
        seed=plan.seed, split_at=data.split_at,
    )  # fmt: skip
    rows = vocabulary(seen.skeleton.model)
    if int(calibration.ids.max()) >= rows:
        raise DataError(
            f"{', '.join(data.data)}: token id {int(calibration.ids.max())} is outside the model's "
            f"vocabulary of {rows}; is the tokenizer of another model?"
        )
    plan = replace(plan, calibration_digest=calibration.digest)
    return Job(path=path, survey=seen, plan=plan, calibration=calibration)
