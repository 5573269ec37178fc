"""What will be done, tensor by tensor. A plan is a file: readable, editable, and enough to run
again."""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

import pennyweight
from pennyweight.core import FormatError, RecipeError, Scheme, UnsupportedError
from pennyweight.core.fields import adapter, first_fault
from pennyweight.formats.schemes import UNTOUCHED, parse_scheme
from pennyweight.observe.gradient import GRADIENT_FIELDS
from pennyweight.pipeline.choose import choose_schemes
from pennyweight.pipeline.recipe import (
    COMPUTE,
    Calibrate,
    Recipe,
    Rewrite,
    Rule,
    Training,
    check_calibration,
    check_target,
    make_quantizer,
    unknown_keys,
)
from pennyweight.pipeline.survey import OUTSIDE, Site, Survey
from pennyweight.quantize.base import Limited, Quantizer, SelectsTogether
from pennyweight.saliency.select import WIDE

DTYPES = ("float16", "bfloat16", "float32")


@dataclass(frozen=True, kw_only=True)
class Task:
    """What happens to one tensor."""

    tensor: str
    scheme: str
    quantizer: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def make(self) -> Quantizer:
        return make_quantizer(self.quantizer, self.options, self.tensor)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that decides the bytes of the result. Two runs of one plan give the same files."""

    model: str
    fingerprint: str  # of the model's files
    dtype: str  # of the checkpoint's weights; scales are stored in it
    compute: str  # dtype of the forward passes
    seed: int
    calibrate: Calibrate | None  # None if nothing in the plan needs data
    calibration_digest: str | None = None  # of the token ids
    min_expert_tokens: int = 32
    trust_remote_code: bool = False
    target: str = "auto"  # the layout of the result
    transforms: tuple[Rewrite, ...] = ()
    trainings: tuple[Training, ...] = ()
    tasks: tuple[Task, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)

    def scheme(self, task: Task) -> Scheme:
        return parse_scheme(task.scheme, getattr(torch, self.dtype))

    @property
    def compute_dtype(self) -> torch.dtype:
        return getattr(torch, self.compute)

    @cached_property
    def by_tensor(self) -> dict[str, Task]:
        return {task.tensor: task for task in self.tasks}

    def dump(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True) + "\n"

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(self.dump().encode()).hexdigest()

    def needs(self, task: Task) -> frozenset[str]:
        """The fields of Stats that a task reads."""
        activation = self.scheme(task).activation
        static = set()
        if activation is not None and not activation.dynamic:
            static = {"absmax", activation.observed}
        return task.make().needs | static


def load_plan(path: Path) -> Plan:
    """Raises RecipeError if the file is not a plan, or holds what no plan can."""
    try:
        data = json.loads(path.read_bytes())
        plan = adapter(Plan).validate_python(data)
    except ValidationError as error:
        fault = first_fault(error)
        raise RecipeError(
            f"{path}: not a plan of this version: {fault.place or 'plan'}: {fault.message}"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise RecipeError(f"{path}: not a plan of this version: {error}") from None
    unknown_keys(Plan, data, str(path))
    for key, cls in (("tasks", Task), ("transforms", Rewrite), ("trainings", Training)):
        for index, item in enumerate(data.get(key, [])):
            unknown_keys(cls, item, f"{path}: {key}.{index}")
    _validate(plan, str(path))
    return plan


def _validate(plan: Plan, where: str) -> None:
    """What the types leave open, so that an edited plan fails before anything is done."""
    for name, known in (("dtype", DTYPES), ("compute", COMPUTE)):
        if (value := getattr(plan, name)) not in known:
            raise RecipeError(
                f"{where}: {name}: expected {' or '.join(known)}, found {value!r:.80}"
            )
    check_target(plan.target, where)
    for index, rewrite in enumerate(plan.transforms):
        rewrite.make(f"{where}: transforms.{index}")
    if not plan.tasks:
        raise RecipeError(f"{where}: tasks: expected at least one")
    if plan.calibrate is not None:
        check_calibration(plan.calibrate, plan.seed, where)
    for task in plan.tasks:
        _check_format(task.make(), plan.scheme(task))
        wanted = plan.transforms or plan.trainings or plan.needs(task)
        if plan.calibrate is None and wanted:
            raise RecipeError(f"{where}: {task.tensor} is to be calibrated, but calibrate is null")
    _check_transforms(plan, where)
    _check_trainings(plan, where)


def resolve_plan(recipe: Recipe, survey: Survey) -> Plan:
    """The plan that a recipe means for this model; the calibration digest is filled in later.

    Raises RecipeError on a rule that matches nothing, FormatError on a group that does not divide.
    """
    skeleton = survey.skeleton
    dtype = skeleton.dtype
    tasks = tuple(_tasks(recipe, survey, dtype))
    if not tasks:
        raise RecipeError("every tensor is left at 16 bits: nothing to do")
    plan = Plan(
        model=recipe.model,
        fingerprint=skeleton.checkpoint.fingerprint,
        dtype=str(dtype).removeprefix("torch."),
        compute=_compute(recipe, dtype),
        seed=recipe.seed,
        calibrate=recipe.calibrate,
        min_expert_tokens=recipe.min_expert_tokens,
        trust_remote_code=recipe.trust_remote_code,
        target=recipe.target,
        transforms=recipe.transform,
        trainings=recipe.train,
        tasks=tasks,
        versions={"pennyweight": pennyweight.__version__, "torch": torch.__version__},
    )
    _check_transforms(plan, "recipe")
    _check_trainings(plan, "recipe")
    blockwise = bool(plan.transforms or plan.trainings)
    needs_data = blockwise or any(plan.needs(task) for task in tasks)
    return plan if needs_data else dataclasses.replace(plan, calibrate=None)


def _check_transforms(plan: Plan, where: str) -> None:
    """A transform may change what it matches, and gradients are taken before. What it changes
    besides, the layer that feeds a match, is known on the block."""
    for index, rewrite in enumerate(plan.transforms):
        for task in plan.tasks:
            matched = fnmatch.fnmatchcase(task.tensor, rewrite.match)
            if matched and plan.needs(task) & GRADIENT_FIELDS:
                raise UnsupportedError(
                    f"{where}: transform.{index}: {task.tensor}: {task.quantizer} reads the "
                    f"gradient of the weight as it was given, which {rewrite.name} may change; "
                    "leave this tensor out of the transform's match"
                )


def _check_trainings(plan: Plan, where: str) -> None:
    """Each has tensors to learn, of formats it can, and samples to learn from and to judge by."""
    for index, training in enumerate(plan.trainings):
        place = f"{where}: train.{index}"
        trainer = training.make(place)
        tasks = [t for t in plan.tasks if fnmatch.fnmatchcase(t.tensor, training.match)]
        if not tasks:
            raise RecipeError(
                f"{place}: match {training.match!r} matches no tensor that is quantized; names "
                f"look like {plan.tasks[0].tensor!r}"
            )
        for task in tasks:
            try:
                trainer.check_format(plan.scheme(task).weight)
            except FormatError as error:
                raise FormatError(f"{place}: {training.name}: {task.tensor}: {error}") from None
        if plan.calibrate is not None and plan.calibrate.samples < 2:
            raise RecipeError(
                f"{place}: calibrate.samples: expected 2 or more, found {plan.calibrate.samples}: "
                "some to learn from and some to judge by"
            )


def _compute(recipe: Recipe, dtype: torch.dtype) -> str:
    if recipe.compute != "auto":
        return recipe.compute
    # float16 products are slow on CPUs and overflow; the other 16-bit type is what the model was
    # made for
    return "bfloat16" if dtype is torch.bfloat16 else "float32"


def _tasks(recipe: Recipe, survey: Survey, dtype: torch.dtype) -> Iterator[Task]:
    wanted = list(_matched(recipe, survey))
    for site, rule in wanted:
        for name in rule.schemes:
            scheme = parse_scheme(name, dtype)
            quantizer = make_quantizer(rule.quantizer, rule.options, site.tensor)
            if site == survey.head:
                check_head(site, scheme, quantizer)
            _check_groups(site, scheme)
            _check_format(quantizer, scheme)
    chosen = choose_schemes(wanted, survey, dtype)
    for site, rule in wanted:
        yield Task(
            tensor=site.tensor, scheme=chosen[site.tensor], quantizer=rule.quantizer,
            options=dict(rule.options),
        )  # fmt: skip


def _matched(recipe: Recipe, survey: Survey) -> Iterator[tuple[Site, Rule]]:
    """Each tensor that is to be quantized and the rule it falls under."""
    unused = dict(enumerate(recipe.rule))
    for site in survey.sites:
        for index, rule in enumerate(recipe.rule):
            if fnmatch.fnmatchcase(site.tensor, rule.match):
                unused.pop(index, None)
                if rule.schemes != (UNTOUCHED,):
                    yield site, rule
                break
    if survey.head is not None and (named := _names_head(recipe, survey)):
        index, rule = named
        unused.pop(index, None)
        if rule.schemes != (UNTOUCHED,):
            yield survey.head, rule
    for index, rule in unused.items():
        raise RecipeError(_unused(index, rule.match, recipe, survey))


def _names_head(recipe: Recipe, survey: Survey) -> tuple[int, Rule] | None:
    """The first rule that means the head: one that matches it and no linear of a block."""
    assert survey.head is not None
    for index, rule in enumerate(recipe.rule):
        if fnmatch.fnmatchcase(survey.head.tensor, rule.match) and not any(
            fnmatch.fnmatchcase(site.tensor, rule.match) for site in survey.sites
        ):
            return index, rule
    return None


def _unused(index: int, pattern: str, recipe: Recipe, survey: Survey) -> str:
    if any(fnmatch.fnmatchcase(tensor, pattern) for tensor in survey.quantizable):
        return f"rule.{index}: match {pattern!r}: earlier rules take every tensor it matches"
    example = survey.sites[0].tensor if survey.sites else "none"
    kept = [name for name in survey.kept if fnmatch.fnmatchcase(name, pattern)]
    if kept:
        why = survey.kept[kept[0]]
        hint = f"; rules reach the blocks of the language model, like {example!r}"
        return (
            f"rule.{index}: match {pattern!r}: {kept[0]} is not quantized ({why})"
            f"{hint if why == OUTSIDE else ''}"
        )
    if survey.head is None and (tied := _tied_head(survey, pattern)):
        return f"rule.{index}: match {pattern!r}: {tied} is the embedding, which is not quantized"
    return f"rule.{index}: match {pattern!r} matches no tensor; names look like {example!r}"


def _tied_head(survey: Survey, pattern: str) -> str | None:
    """The name of a head without a tensor of its own, if the pattern means it."""
    model = survey.skeleton.model
    head = model.get_output_embeddings()
    names = [f"{name}.weight" for name, module in model.named_modules() if module is head]
    return next((name for name in names if fnmatch.fnmatchcase(name, pattern)), None)


def head_fault(head: Site, scheme: Scheme) -> str | None:
    """Why a head cannot be in a scheme."""
    if scheme.activation is not None:
        return "rounds inputs, and a head can only be in a weight-only scheme, such as W8A16_g128"
    try:
        scheme.weight.groups(*head.shape)
    except FormatError as error:
        return str(error)
    return None


def check_head(head: Site, scheme: Scheme, quantizer: Quantizer) -> None:
    """Raises FormatError for a scheme that a head cannot be in, RecipeError for a quantizer."""
    if fault := head_fault(head, scheme):
        raise FormatError(f"{head.tensor}: {scheme.name}: {fault}")
    wide = isinstance(quantizer, SelectsTogether) and quantizer.scope in WIDE
    if wide or quantizer.needs & GRADIENT_FIELDS:
        what = "chooses weights over several linears" if wide else "needs gradients"
        raise RecipeError(
            f"{head.tensor}: the quantizer of its rule {what}, which there is in blocks alone; "
            "use another one for the head, such as rtn or gptq"
        )


def _check_format(quantizer: Quantizer, scheme: Scheme) -> None:
    if isinstance(quantizer, Limited):
        quantizer.check_format(scheme.weight)


def _check_groups(site: Site, scheme: Scheme) -> None:
    try:
        scheme.weight.groups(*site.shape)
        if scheme.activation is not None:
            scheme.activation.format.groups(1, site.shape[1])
    except FormatError as error:
        raise FormatError(f"{site.tensor}: {error}, or a rule for this tensor") from None
