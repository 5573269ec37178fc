"""The verb `check`: everything that can be known before anything heavy is done."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import Any

from pennyweight.core import FormatError
from pennyweight.formats.compressed_tensors import parts
from pennyweight.formats.storage import stored_bytes
from pennyweight.observe.gradient import GRADIENT_FIELDS
from pennyweight.pipeline.job import Job, prepare
from pennyweight.pipeline.plan import Task
from pennyweight.pipeline.recipe import Recipe
from pennyweight.pipeline.servable import mixed_products, rare_bits
from pennyweight.pipeline.survey import Site
from pennyweight.quantize.base import Adds, Selects

BASE_BYTES = 450 * 2**20  # Python, torch and transformers before any weight: measured, see LOG.md
SOLVE_FLOPS = 20e9  # float32 operations a second of one core, conservative, for the time estimate


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """Sizes are bytes; estimates are labelled so and are meant to be right within a factor of
    two."""

    model: str
    parameters: int
    bytes_before: int
    bytes_after: int
    bits_per_weight: float  # over the weights that are quantized, everything stored counted
    quantized_share: float  # of all parameters
    schemes: dict[str, int]  # scheme -> tensors
    kept: dict[str, int]  # reason -> tensors that stay as they are
    kept_bytes: dict[str, int]  # reason -> bytes
    estimated_peak_bytes: int
    estimated_disk_bytes: int  # the work directory and the result together
    estimated_time_s: float
    calibration: dict[str, Any] | None
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def check(recipe: Recipe, *, read_text: bool = True) -> CheckReport:
    """Sizes, estimates and warnings for a recipe. Raises what `quantize` would raise at its
    start."""
    return check_job(prepare(recipe, read_text=read_text))


def check_job(job: Job) -> CheckReport:
    tensors = job.survey.skeleton.checkpoint.tensors
    planned = [s for s in job.survey.quantizable.values() if s.tensor in job.plan.by_tensor]
    stored = {site.tensor: _stored_bytes(job, site) + _added_bytes(job, site) for site in planned}
    before = sum(info.size_bytes for info in tensors.values())
    after = before - sum(tensors[name].size_bytes for name in stored) + sum(stored.values())
    weights = sum(prod(site.shape) for site in planned)
    parameters = sum(prod(info.shape) for info in tensors.values())
    left = {s.tensor: "left at 16 bits by the recipe" for s in job.survey.sites} | job.survey.kept
    kept = {name: why for name, why in left.items() if name not in stored}
    kept_bytes: Counter[str] = Counter()
    for name, why in kept.items():
        kept_bytes[why] += tensors[name].size_bytes
    return CheckReport(
        model=str(job.path),
        parameters=parameters,
        bytes_before=before,
        bytes_after=after,
        bits_per_weight=8 * sum(stored.values()) / weights,
        quantized_share=weights / parameters,
        schemes=dict(Counter(job.plan.by_tensor[name].scheme for name in stored)),
        kept=dict(Counter(kept.values())),
        kept_bytes=dict(kept_bytes),
        estimated_peak_bytes=_peak(job, planned),
        estimated_disk_bytes=sum(stored.values()) + max(after, _replayed_bytes(job)),
        estimated_time_s=_time(job, planned),
        calibration=job.calibration.description if job.calibration else None,
        warnings=tuple(_warnings(job, kept)),
    )


def _stored_bytes(job: Job, site: Site) -> int:
    scheme = job.plan.scheme(job.plan.by_tensor[site.tensor])
    try:
        found = parts(scheme, site.shape).values()
    except FormatError:  # it will be stored in the packed layout
        return stored_bytes(scheme.weight, site.shape)
    return sum(prod(part.shape) * part.dtype.itemsize for part in found)


def _added_bytes(job: Job, site: Site) -> int:
    """What its quantizer keeps or adds besides codes, as far as that is known."""
    task = job.plan.by_tensor[site.tensor]
    quantizer = task.make()
    if not isinstance(quantizer, Adds):
        return 0
    return quantizer.added_bytes(site.shape, job.plan.scheme(task).weight)


def _peak(job: Job, planned: list[Site]) -> int:
    """The largest block, the samples, and what observing or solving one stage holds."""
    skeleton = job.survey.skeleton
    blocks = range(len(job.survey.topologies))
    outside = {s.key for s in skeleton.outside_sources().values()}
    largest_copy = max(skeleton.checkpoint.tensors[key].size_bytes for key in outside)
    entered = sum(  # held at once while the inputs of the blocks are made; images have an encoder
        skeleton.checkpoint.tensors[key].size_bytes
        for key in outside
        if not job.survey.kept.get(key, "").startswith("lm_head")
    )
    largest = max(4 * prod(site.shape) for site in planned)
    if job.plan.calibrate is None:
        return BASE_BYTES + max(4 * largest, largest_copy)
    block = max(
        sum(
            skeleton.checkpoint.tensors[s.key].size_bytes
            for s in skeleton.block_sources(i).values()
        )
        for i in blocks
    )
    inputs = max(site.shape[1] for site in planned)
    hidden = skeleton.model.config.get_text_config().hidden_size
    width = 2 if job.plan.compute == "bfloat16" else 4
    data = job.plan.calibrate
    samples = data.samples * data.tokens * hidden * width
    gram = 4 * inputs**2
    observe = gram + 8 * data.tokens * inputs * (width + 4)
    solve = 2 * gram + gram // 4 + 3 * largest  # with its factor, and the scratch of making it
    return BASE_BYTES + max(block + samples + max(observe, solve), largest_copy, entered)


def _replayed_bytes(job: Job) -> int:
    """What is kept of one block's outputs, at most: what its linears give for every sample."""
    data, config = job.plan.calibrate, job.survey.skeleton.model.config.get_text_config()
    if data is None:
        return 0
    outputs: dict[int, float] = dict.fromkeys(range(len(job.survey.topologies)), 0.0)
    for site in job.survey.sites:
        outputs[site.block] += site.shape[0] * _share(site, config)
    width = 2 if job.plan.compute == "bfloat16" else 4
    return int(data.samples * data.tokens * width * max(outputs.values()))


def _share(site: Site, config: Any) -> float:
    """Of the tokens, how many reach a linear: an expert sees those that were sent to it."""
    keys = ("num_experts", "num_local_experts", "n_routed_experts")
    experts = next((n for key in keys if (n := getattr(config, key, None))), 1)
    chosen = getattr(config, "num_experts_per_tok", None) or experts
    is_expert = any(part.isdigit() for part in site.local.split("."))
    return min(chosen / experts, 1.0) if is_expert else 1.0


def _time(job: Job, planned: list[Site]) -> float:
    weights = sum(prod(site.shape) for site in planned)
    if job.plan.calibrate is None:
        return 5 + weights * 60 / SOLVE_FLOPS
    tokens = job.plan.calibrate.samples * job.plan.calibrate.tokens
    forward = 2 * tokens * weights
    inputs = {(s.block, s.shape[1], s.local.rpartition(".")[0]): s.shape[1] for s in planned}
    gram = sum(tokens * width**2 for width in inputs.values())
    solve = sum(s.shape[0] * s.shape[1] ** 2 for s in planned) + sum(w**3 for w in inputs.values())
    work = forward / 2 + gram + solve + forward / 2 * _more_passes(job, planned)
    return 5 + work / (2 * SOLVE_FLOPS)


def _more_passes(job: Job, planned: list[Site]) -> float:
    """For gradients and for methods that learn, in forward passes over all samples; a pass back
    takes two, and a pass forward before it that keeps what it needs one."""
    data = job.plan.calibrate
    assert data is not None, "both are calibrated"
    needed = any(job.plan.needs(job.plan.by_tensor[s.tensor]) & GRADIENT_FIELDS for s in planned)
    visits = (data.gradient_samples or data.samples) if needed else 0
    visits += sum(each.make().visits(data.samples) for each in job.plan.trainings)
    return 3 * visits / data.samples


def _keeps_unknown(task: Task) -> bool:
    quantizer = task.make()
    return isinstance(quantizer, Selects) and not isinstance(quantizer, Adds)


def _warnings(job: Job, kept: dict[str, str]):
    tasks = job.plan.by_tensor
    yield from mixed_products(job.plan, job.survey)
    yield from rare_bits(job.plan)
    if any(task.scheme.startswith("W8A16") for task in tasks.values()):
        yield "W8A16: vLLM serves it on GPUs; its CPU backend takes W4A16 and W8A8"
    if "not part of the model that transformers builds" in kept.values():
        names = [name for name, why in kept.items() if why.startswith("not part")]
        yield f"{len(names)} tensors are not part of the decoder and are carried over ({names[0]})"
    unknown = {task.quantizer for task in tasks.values() if _keeps_unknown(task)}
    for name in sorted(unknown):
        yield f"{name}: how many weights it keeps is known afterwards; the sizes are without them"
    if job.calibration is not None and job.calibration.note:
        yield f"calibration: {job.calibration.note}"
    for warning in job.calibration.warnings if job.calibration else ():
        yield f"calibration: {warning}"
