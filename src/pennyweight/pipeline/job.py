"""A recipe brought together with its model: what `check` looks at and `quantize` carries out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pennyweight.core import CheckpointError, DataError, RecipeError
from pennyweight.model.calibration import CALIBRATIONS
from pennyweight.model.calibration.mix import parse_mix
from pennyweight.model.capture import max_tokens
from pennyweight.model.checkpoint import Checkpoint
from pennyweight.model.load import has_tokenizer, load_tokenizer, vocabulary
from pennyweight.model.resolve import resolve_model
from pennyweight.model.samples import draw_samples
from pennyweight.model.skeleton import Skeleton
from pennyweight.model.text import Calibration, Request
from pennyweight.model.tokens import Tokenizer
from pennyweight.pipeline.plan import Plan, check_head, load_plan, resolve_plan
from pennyweight.pipeline.recipe import Calibrate, Recipe
from pennyweight.pipeline.servable import require_engine
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
    if recipe.budget:
        raise RecipeError(
            f"budget: {recipe.budget!r:.40} has to be planned for first; `pennyweight plan` and "
            "`pennyweight quantize` do it, and so does api.quantize"
        )
    path = resolve_model(recipe.model)
    skeleton = Skeleton.build(Checkpoint.open(path), recipe.trust_remote_code)
    seen = survey(skeleton)
    plan = resolve_plan(recipe, seen)
    require_engine(recipe.engine, plan, seen)
    return with_text(path, seen, plan) if read_text else Job(
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
    unknown = [task.tensor for task in plan.tasks if task.tensor not in seen.quantizable]
    if unknown:
        raise RecipeError(f"{file}: {unknown[0]} is not a linear of {path} that can be quantized")
    if seen.head is not None and (task := plan.by_tensor.get(seen.head.tensor)):
        check_head(seen.head, plan.scheme(task), task.make())
    job = with_text(path, seen, plan)
    if plan.calibration_digest and job.plan.calibration_digest != plan.calibration_digest:
        raise CheckpointError(f"{file}: the calibration text is not the one the plan was made with")
    return job


def with_text(path: Path, seen: Survey, plan: Plan) -> Job:
    """The job of a plan for the surveyed model, with its calibration text where it asks for one."""
    if plan.calibrate is None:
        return Job(path=path, survey=seen, plan=plan, calibration=None)
    calibration = draw_for(path, seen.skeleton, plan.calibrate, plan.seed, plan.trust_remote_code)
    plan = replace(plan, calibration_digest=calibration.digest)
    return Job(path=path, survey=seen, plan=plan, calibration=calibration)


def draw_for(
    path: Path, skeleton: Skeleton, data: Calibrate, seed: int, trust_remote_code: bool = False
) -> Calibration:
    """Calibration rows for a model: with its tokenizer, and no longer than it has positions for.

    Raises DataError for ids that the model has no embedding of.
    """
    limit, rows = max_tokens(skeleton), vocabulary(skeleton.model)
    request = Request(
        tokenizer=tokenizer_for(path, data.data, trust_remote_code),
        samples=data.samples, tokens=min(data.tokens, limit or data.tokens), seed=seed,
        split_at=data.split_at, chat_template=data.chat_template, model=path, vocabulary=rows,
        trust_remote_code=trust_remote_code,
    )  # fmt: skip
    calibration = draw_samples(data.data, request, skeleton)
    if (largest := calibration.largest_id) >= rows:
        raise DataError(
            f"{', '.join(data.data)}: token id {largest} is outside the model's "
            f"vocabulary of {rows}; is the tokenizer of another model?"
        )
    return calibration


def tokenizer_for(
    path: Path, sources: Sequence[str], trust_remote_code: bool = False
) -> Tokenizer | None:
    """The model's tokenizer; None if all sources are files of token ids, or if there is none and
    they can do without. Raises CheckpointError if there is none and they cannot."""
    parts = [part for source in sources for part in parse_mix(source) or [source]]
    files = [part.endswith(".json") for part in parts]
    names = [part.partition(":")[0] for part in parts]
    given = [name in CALIBRATIONS and CALIBRATIONS[name].gives_ids for name in names]
    if all(files):
        return None
    if all(a or b for a, b in zip(files, given, strict=True)) and not has_tokenizer(path):
        return None
    return load_tokenizer(path, trust_remote_code)
