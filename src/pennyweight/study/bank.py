"""Every tensor of a model quantized once in every scheme, on disk, to be put together at will.

For each scheme the pipeline carries out a plan that gives it to all tensors that can take it, and
what it leaves in its work directory is what the bank reads. So a bank may be interrupted like any
run, and one of another model, quantizer or calibration text is an error that says what differs.

A quantizer with data sees the errors of what comes before a layer, and in the bank all of that is
of the same scheme as the layer. In a mix it is not; what that costs a mix is for whoever builds
one to measure, which is what makes a trial fast.
"""

from __future__ import annotations

import glob
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from pennyweight.core import FormatError, Progress, RecipeError
from pennyweight.core.record import record_key
from pennyweight.formats.schemes import UNTOUCHED, parse_scheme
from pennyweight.model.checkpoint import Checkpoint
from pennyweight.model.engine import Engine, threads_of
from pennyweight.model.resolve import resolve_model
from pennyweight.model.skeleton import Skeleton
from pennyweight.model.text import Calibration
from pennyweight.model.workers import Workers, start_workers
from pennyweight.model.writer import disk_errors
from pennyweight.pipeline.job import with_text
from pennyweight.pipeline.plan import Plan, head_fault, resolve_plan
from pennyweight.pipeline.recipe import Calibrate, Recipe, Rule, Training
from pennyweight.pipeline.run import Run
from pennyweight.pipeline.survey import Site, Survey, survey
from pennyweight.pipeline.workdir import WorkDir
from pennyweight.study.beside import Head, Matrix, Operands, beside_of, is_scheme


@dataclass(frozen=True, kw_only=True)
class Ingredients:
    """Everything that decides what is in a bank, but for the schemes."""

    model: str
    quantizer: str = "gptq"
    options: Mapping[str, Any] = field(default_factory=dict)
    train: tuple[Training, ...] = ()  # of those that change linears alone
    calibrate: Calibrate = field(default_factory=Calibrate)
    also: tuple[str, ...] = ()  # kinds of `study.beside` that are put together with the rest
    seed: int = 0
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Raises RecipeError for a trainer whose linears mean nothing without the rest."""
        for training in self.train:
            if not training.make().linears_alone:
                raise RecipeError(
                    f"train: {training.name} also changes gains, biases or scales, which cannot be "
                    "exchanged linear by linear; leave it out here"
                )

    @property
    def method(self) -> str:
        """As it is told."""
        return " and ".join([self.quantizer, *(training.name for training in self.train)])

    def recipe(self, rules: Sequence[Rule]) -> Recipe:
        return Recipe(
            model=self.model, seed=self.seed, calibrate=self.calibrate, rule=tuple(rules),
            train=self.train, trust_remote_code=self.trust_remote_code,
        )  # fmt: skip

    def rule(self, scheme: str) -> Rule:
        return Rule(scheme=scheme, quantizer=self.quantizer, options=self.options)


@dataclass(frozen=True)
class Bank:
    """What is in a folder; `Bank.make` fills it."""

    folder: Path
    path: Path  # of the model
    survey: Survey
    ingredients: Ingredients
    calibration: Calibration | None  # None if no plan needed any
    plans: Mapping[str, Plan]  # by scheme, without W16A16
    missing: Mapping[tuple[str, str], str]  # (tensor, scheme) -> why it cannot take it
    head: Site | None = None  # if it is quantized too
    # By name: what is not on disk because it has no weights or is rounded when it is asked for.
    beside: Mapping[str, Operands | Matrix] = field(default_factory=dict)

    @classmethod
    def make(
        cls,
        ingredients: Ingredients,
        schemes: Sequence[str],
        folder: Path,
        workers: Workers,
        progress: Progress | None = None,
        engine: Engine | None = None,
    ) -> Bank:
        """The bank in `folder`, with whatever these schemes lack in it added.

        engine: shares out the schemes; every process of it must see the folder and the model under
        the same paths.
        Raises CheckpointError if the folder is of another model, quantizer or calibration text;
        FormatError for a scheme that no tensor can take; and all that quantizing raises.
        """
        progress, names = progress or Progress(), list(dict.fromkeys(schemes))
        names = [name for name in names if name != UNTOUCHED]
        if not names:
            raise RecipeError(f"expected schemes besides {UNTOUCHED}, such as W4A16_g128")
        path = resolve_model(ingredients.model)
        seen = survey(Skeleton.build(Checkpoint.open(path), ingredients.trust_remote_code))
        others = beside_of(seen, ingredients.also)
        head = seen.head if any(isinstance(each, Head) for each in others) else None
        missing = _missing(seen, names, head)
        plans, calibration = _plans(path, seen, ingredients, names, missing, head)
        beside = {each.name: each for each in others if not isinstance(each, Head)}
        bank = cls(folder, path, seen, ingredients, calibration, plans, missing, head, beside)
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        todo = [scheme for scheme in bank.plans if not bank._is_full(scheme)]
        if engine is None or engine.is_local:
            for scheme in todo:
                bank._run(scheme, workers, progress)
            return bank
        fill = Fill(ingredients, folder, threads_of(engine, None))
        for number, scheme in enumerate(engine.map(fill, todo), 1):
            progress.measured(bank._told(scheme), done=number, total=len(todo))
        return bank

    def _is_full(self, scheme: str) -> bool:
        """Raises CheckpointError if what is there is of another plan."""
        plan = self.plans[scheme]
        work = WorkDir.open(self._place(scheme), plan)
        return all(work.is_done(index) for index in self.survey.steps(plan.by_tensor))

    def _told(self, scheme: str) -> str:
        return f"{scheme}: every linear by {self.ingredients.method}"

    def _run(self, scheme: str, workers: Workers, progress: Progress) -> None:
        plan, work = self.plans[scheme], self._work(scheme)
        progress.say(self._told(scheme))
        rows = None
        if plan.calibrate is not None:
            assert self.calibration is not None, "read if any plan asks for it"
            rows = self.calibration.ids
        Run(
            plan=plan, survey=self.survey, work=work, rows=rows, workers=workers, progress=progress
        )()

    @property
    def schemes(self) -> tuple[str, ...]:
        """Without W16A16."""
        return tuple(self.plans)

    @property
    def fingerprint(self) -> str:
        """Of the checkpoint."""
        return self.survey.skeleton.checkpoint.fingerprint

    @cached_property
    def tensors(self) -> dict[str, Site]:
        """What is on disk, by tensor: the linears of the blocks, and the head if it was asked
        for."""
        return self.survey.by_tensor | ({self.head.tensor: self.head} if self.head else {})

    def identity(self, scheme: str) -> str:
        """Equal for equal contents: a digest of all that decides what is in it of this scheme."""
        return record_key({"plan": self.plan(scheme)}) if scheme in self.plans else scheme

    def plan(self, scheme: str) -> str:
        """The digest of its plan; empty for what is not on disk."""
        return self.plans[scheme].digest if scheme in self.plans else ""

    def takes(self, tensor: str, scheme: str) -> bool:
        if other := self.beside.get(tensor):
            return scheme == UNTOUCHED or _fault(other, scheme) is None
        if scheme == UNTOUCHED:
            return tensor in self.tensors
        return scheme in self.plans and tensor in self.plans[scheme].by_tensor

    def fault(self, tensor: str, scheme: str) -> str:
        """Why it does not take the scheme."""
        if other := self.beside.get(tensor):
            return _fault(other, scheme) or ""
        return self.missing.get((tensor, scheme), f"{scheme} is none of {', '.join(self.schemes)}")

    def shape(self, tensor: str) -> tuple[int, int] | None:
        """None for what has no weights."""
        other = self.beside.get(tensor)
        if isinstance(other, Operands):
            return None
        return other.shape if other else self.tensors[tensor].shape

    def parameters(self, tensor: str) -> int:
        return math.prod(self.shape(tensor) or (0,))

    def weight(self, tensor: str, scheme: str) -> Float[Tensor, "out in"]:
        """What the stored weight stands for, float32, in memory of its own."""
        if scheme == UNTOUCHED:
            return self.survey.weight(self.tensors[tensor])
        return self._load(tensor, scheme)[0]

    def input_scale(self, tensor: str, scheme: str) -> Tensor | None:
        """The [1, 1] scale of a static activation format; None where there is none."""
        return None if scheme == UNTOUCHED else self._load(tensor, scheme)[1]

    def linear(self, tensor: str, scheme: str) -> tuple[Tensor, Tensor | None]:
        """(weight, input_scale), read once."""
        if scheme == UNTOUCHED:
            return self.weight(tensor, scheme), None
        return self._load(tensor, scheme)

    def stored_bits(self, tensor: str, scheme: str) -> int:
        """Of everything that is stored for the weight: codes, scales, tables, corrections."""
        dtype, other = self.survey.skeleton.dtype, self.beside.get(tensor)
        if scheme == UNTOUCHED:
            return self.parameters(tensor) * 8 * dtype.itemsize
        if other is not None:
            return other.stored_bits(scheme, dtype)
        return 8 * self.fact(tensor, scheme)["bytes"]

    def fact(self, tensor: str, scheme: str) -> dict[str, Any]:
        """What the pipeline noted: `loss` and its `metric`, `tokens`, `bytes`, `notes`."""
        return self._facts[scheme][tensor]

    @cached_property
    def _facts(self) -> dict[str, dict[str, dict[str, Any]]]:
        found = {}
        for scheme, plan in self.plans.items():
            steps = self.survey.steps(plan.by_tensor)
            blocks = [self._work(scheme).facts(i) for i in steps]
            found[scheme] = {name: fact for block in blocks for name, fact in block.items()}
        return found

    def _place(self, scheme: str) -> Path:
        """With the head it is another plan."""
        return self.folder / (f"{scheme}+{self.head.name}" if self.head else scheme)

    def _work(self, scheme: str) -> WorkDir:
        return WorkDir(WorkDir.place(self._place(scheme)), self.plans[scheme])

    def _load(self, tensor: str, scheme: str) -> tuple[Tensor, Tensor | None]:
        if not self.takes(tensor, scheme):
            raise FormatError(f"{tensor}: {self.fault(tensor, scheme)}")
        task, site = self.plans[scheme].by_tensor[tensor], self.tensors[tensor]
        quantized, input_scale = self._work(scheme).load(site.block, tensor, task)
        return quantized.dequantize(), input_scale


@dataclass(frozen=True)
class Fill:
    """Scheme -> the same, once it is in the bank. It can be sent to another process."""

    ingredients: Ingredients
    folder: Path
    threads: int | None

    def __call__(self, scheme: str) -> str:
        with start_workers(self.threads) as workers:
            Bank.make(self.ingredients, [scheme], self.folder, workers)
        return scheme


def _fault(other: Operands | Matrix, scheme: str) -> str | None:
    """Raises UnsupportedError for a scheme that is nothing to operands."""
    if isinstance(other, Matrix) and not is_scheme(scheme):
        return f"{scheme} is a format of operands, and {other.kind} has weights"
    return other.fault(scheme)


def _missing(
    seen: Survey, schemes: Sequence[str], head: Site | None = None
) -> dict[tuple[str, str], str]:
    """(tensor, scheme) -> why it cannot take it, where groups do not divide."""
    found = {}
    for name in schemes:
        scheme = parse_scheme(name, seen.skeleton.dtype)
        if head is not None and (fault := head_fault(head, scheme)):
            found[head.tensor, name] = f"{name}: {fault}"
        for site in seen.sites:
            try:
                scheme.weight.groups(*site.shape)
                if scheme.activation is not None:
                    scheme.activation.format.groups(1, site.shape[1])
            except FormatError as error:
                found[site.tensor, name] = f"{name}: {error}"
        if all((site.tensor, name) in found for site in seen.sites):
            raise FormatError(f"no tensor can take it: {found[seen.sites[0].tensor, name]}")
    return found


def _plans(
    path: Path,
    seen: Survey,
    ingredients: Ingredients,
    schemes: Sequence[str],
    missing: Mapping[tuple[str, str], str],
    head: Site | None = None,
) -> tuple[dict[str, Plan], Calibration | None]:
    """A plan for each scheme, and the text that those read which need any."""
    plans: dict[str, Plan] = {}
    calibration = None
    for scheme in schemes:
        without = [tensor for tensor, name in missing if name == scheme]
        rules = [Rule(match=glob.escape(tensor), scheme=UNTOUCHED) for tensor in without]
        rules += _naming(head, scheme, without, ingredients)
        plan = resolve_plan(ingredients.recipe([*rules, ingredients.rule(scheme)]), seen)
        if plan.calibrate is not None:
            calibration = calibration or with_text(path, seen, plan).calibration
            assert calibration is not None, "the plan asks for it"
            plan = replace(plan, calibration_digest=calibration.digest)
        plans[scheme] = plan
    return plans, calibration


def _naming(
    head: Site | None, scheme: str, without: Sequence[str], ingredients: Ingredients
) -> Iterator[Rule]:
    """A head is quantized where a rule names it."""
    if head is not None and head.tensor not in without:
        yield replace(ingredients.rule(scheme), match=glob.escape(head.tensor))
