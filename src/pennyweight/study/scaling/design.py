"""What a study of mixed precision over model sizes asks for, and how its mixes are drawn.

The design of Scaling Laws for Mixed Quantization, https://arxiv.org/abs/2410.06722, v1, section 3:
for each model, format, granularity and quantization ratio a random search over which units are in
low precision; beside it the exact allocation that we would choose. Every trial is measured and
kept. High precision is the checkpoint's own.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Literal

from pennyweight.core import RecipeError
from pennyweight.core.fields import typed
from pennyweight.formats.schemes import UNTOUCHED, parse_scheme
from pennyweight.model.text import documents
from pennyweight.pipeline.recipe import (
    Calibrate,
    make_quantizer,
    override,
    read_recipe,
    unknown_keys,
)
from pennyweight.study.bank import Ingredients
from pennyweight.study.beside import OPERANDS, check_also, operand_format
from pennyweight.study.calibration.design import EvaluateOn
from pennyweight.study.planning.budget import Budget, parse_budget
from pennyweight.study.units import GRANULARITIES

Search = Literal["random", "exact"]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Every combination of these is searched."""

    models: tuple[str, ...] = ()  # none: all models of the study
    formats: tuple[str, ...]  # schemes of what is in low precision
    granularities: tuple[str, ...] = ("matmul",)
    also: tuple[str, ...] = ()  # further units, of the kinds of `study.beside`
    ratios: tuple[float, ...]  # Q_r: parameters in low precision over those of all units
    searches: tuple[Search, ...] = ("random", "exact")


@dataclass(frozen=True, kw_only=True)
class ScalingStudy:
    """A study file. `sense` is the text on which units are measured for the exact allocation; it
    is another one than the trials are measured on, so that a choice is not judged by what it was
    made from. (The best random trial is: its advantage is the search's own.)"""

    name: str = "scaling"  # of the series of records
    models: tuple[str, ...]
    grid: tuple[Grid, ...]
    trials: int = 50  # of the random search, for each combination
    budgets: tuple[str, ...] = ("5%", "10%", "20%")  # of perplexity, or as "kl<=0.05"; for the laws
    quantizer: str = "rtn"
    options: Mapping[str, Any] = field(default_factory=dict)  # of the quantizer
    calibrate: Calibrate = field(default_factory=Calibrate)  # where the quantizer needs data
    seed: int = 0
    evaluate: EvaluateOn = field(default_factory=EvaluateOn)
    sense: EvaluateOn = field(default_factory=lambda: EvaluateOn(data=("stdlib",)))
    trust_remote_code: bool = False

    def ingredients(self, model: str) -> Ingredients:
        return Ingredients(
            model=model, quantizer=self.quantizer, options=self.options, calibrate=self.calibrate,
            seed=self.seed, trust_remote_code=self.trust_remote_code,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Part:
    """One search: the trials of a combination."""

    model: str
    format: str
    granularity: str  # with the kinds of further units: matmul+qk+pv
    search: Search
    ratio: float  # that was asked for

    @property
    def also(self) -> tuple[str, ...]:
        return tuple(self.granularity.split("+")[1:])


def load_study(path: Path, overrides: Sequence[str] = ()) -> ScalingStudy:
    """Raises RecipeError with the path of the offending key, UnknownNameError for a format or
    granularity that there is not, and what reading its texts raises: before anything is
    measured."""
    return parse_study(override(read_recipe(path), overrides), str(path))


def parse_study(data: Mapping[str, Any], where: str = "study") -> ScalingStudy:
    """As `load_study`, of a dictionary."""
    unknown_keys(ScalingStudy, data, where)
    grids = data.get("grid", [])
    nested = [("grid", Grid, each) for each in (grids if isinstance(grids, list) else [grids])]
    nested += [(key, EvaluateOn, data.get(key)) for key in ("evaluate", "sense")]
    nested += [("calibrate", Calibrate, data.get("calibrate"))]
    for key, cls, value in nested:
        if isinstance(value, dict):
            unknown_keys(cls, value, f"{where}: {key}")
    study: ScalingStudy = typed(ScalingStudy, data, f"{where}: ")
    _check(study, where)
    return study


def _check(study: ScalingStudy, where: str) -> None:
    for axis in ("models", "grid", "budgets"):
        _check_axis(getattr(study, axis), f"{where}: {axis}")
    if study.trials < 1:
        raise RecipeError(f"{where}: trials is {study.trials}; expected at least 1")
    for budget in study.budgets:
        loss_budget(budget)
    make_quantizer(study.quantizer, study.options, where)
    for number, grid in enumerate(study.grid):
        _check_grid(study, grid, f"{where}: grid.{number}")
    for text in (study.evaluate, study.sense):
        for source in text.data:
            documents(source, split_at=text.split_at)


def _check_grid(study: ScalingStudy, grid: Grid, where: str) -> None:
    for axis in ("formats", "granularities", "ratios", "searches"):
        _check_axis(getattr(grid, axis), f"{where}.{axis}")
    for model in grid.models:
        if model not in study.models:
            raise RecipeError(f"{where}.models: {model!r} is not among the models of the study")
    for name in grid.formats:
        if name == UNTOUCHED:
            raise RecipeError(f"{where}.formats: {name} is the high precision; expected a low one")
        parse_scheme(name)
    for name in grid.granularities:
        if name not in GRANULARITIES:
            raise RecipeError(
                f"{where}.granularities: {name!r:.40}; known: {', '.join(GRANULARITIES)}"
            )
    _check_also(grid, f"{where}.also")
    for ratio in grid.ratios:
        if not 0 < ratio <= 1:
            raise RecipeError(f"{where}.ratios: {ratio}; expected above 0 and at most 1")


def _check_also(grid: Grid, where: str) -> None:
    """Raises UnsupportedError for a format that says nothing of operands."""
    if grid.also:
        _check_axis(grid.also, where)
    check_also(grid.also)
    for kind, name in itertools.product(grid.also, grid.formats):
        if kind in OPERANDS:
            operand_format(name, kind)


def _check_axis(values: Sequence[Any], where: str) -> None:
    if not values:
        raise RecipeError(f"{where}: is empty; expected at least one")
    if any(value in values[:place] for place, value in enumerate(values)):
        raise RecipeError(f"{where}: each value counts once; remove the repeated one")


def parts(study: ScalingStudy) -> Iterator[Part]:
    """Every combination of every grid once, model by model."""
    seen: set[Part] = set()
    for model in study.models:
        for grid in study.grid:
            if grid.models and model not in grid.models:
                continue
            for name, granularity, search, ratio in itertools.product(
                grid.formats, grid.granularities, grid.searches, grid.ratios
            ):
                part = Part(
                    model=model, format=name, granularity="+".join((granularity, *grid.also)),
                    search=search, ratio=ratio,
                )  # fmt: skip
                if part not in seen:
                    seen.add(part)
                    yield part


def draw(sizes: Mapping[str, int], ratio: float, key: Sequence[Any]) -> tuple[str, ...]:
    """Units whose share of all parameters is close to `ratio`, in the order of `sizes`.

    The units are shuffled and taken one after the other, each if that does not move the share away
    from the ratio. With many units the share ends within half of the smallest one; with few it is
    what these allow, so that a study records the share it got. Of units without parameters, which
    that says nothing about, the same share by number is drawn. Every random number comes from
    `key`: the same key gives the same units.
    """
    generator, total = Random(" ".join(map(str, key))), sum(sizes.values())
    order, taken, low = [name for name in sizes if sizes[name]], set[str](), 0
    generator.shuffle(order)
    for name in order:
        if abs(low + sizes[name] - ratio * total) <= abs(low - ratio * total):
            taken.add(name)
            low += sizes[name]
    weightless = [name for name in sizes if not sizes[name]]
    taken |= set(generator.sample(weightless, share_of(len(weightless), ratio)))
    return tuple(name for name in sizes if name in taken)


def share_of(count: int, ratio: float) -> int:
    """How many are this share of so many, rounded half up."""
    return math.floor(ratio * count + 0.5)


def text_of(text: EvaluateOn) -> dict[str, Any]:
    """What decides the tokens of a text, in words; files by what they hold."""
    files = {
        source: hashlib.sha256(Path(source).read_bytes()).hexdigest()
        for source in sorted(text.data)
        if Path(source).is_file()
    }
    return {**asdict(text), "data": list(text.data), "files": files}


def loss_budget(text: str) -> Budget:
    """`5%` is of perplexity; otherwise a budget as `pennyweight plan` takes it, of a loss.

    Raises RecipeError.
    """
    budget = parse_budget(f"ppl<={text}" if "=" not in text else text)
    if budget.bounded != "loss" or budget.tasks:
        raise RecipeError(
            f"{text!r}: expected a budget of a loss, as 5% (of perplexity) or kl<=0.05"
        )
    return budget


def low_bits(format: str, bits: float) -> int:
    """Up to how many bits a code counts as low precision where `format` is the low one."""
    assert bits < 16, f"{format} is not lower than what it replaces"
    return math.ceil(bits)
