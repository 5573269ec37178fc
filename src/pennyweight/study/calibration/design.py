"""What a study of calibration sets asks for: methods x sets x sample counts x seeds.

The design of Paglieri et al. 2024 (https://arxiv.org/abs/2405.20835), with the repetitions of
Williams and Aletras 2023 (https://arxiv.org/abs/2311.09755): every combination is measured, so that
sets are compared under the same method, samples and seed.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pennyweight.core import RecipeError
from pennyweight.core.fields import typed
from pennyweight.core.record import record_key
from pennyweight.evaluate import Settings
from pennyweight.model.calibration import CALIBRATIONS
from pennyweight.model.calibration.mix import parse_mix
from pennyweight.model.text import documents
from pennyweight.pipeline.recipe import (
    Recipe,
    override,
    parse_recipe,
    read_recipe,
    unknown_keys,
)

METHOD_KEYS = ("rule", "transform", "compute", "min_expert_tokens", "target")  # of a recipe


@dataclass(frozen=True, kw_only=True)
class EvaluateOn:
    """The text every result is measured on, as for `pennyweight eval`."""

    data: tuple[str, ...] = ("stdlib-heldout",)
    split_at: str | None = None
    context: int | None = None
    max_tokens: int | None = None
    document_tokens: int | None = None

    @property
    def settings(self) -> Settings:
        return Settings(
            context=self.context, max_tokens=self.max_tokens, document_tokens=self.document_tokens
        )


@dataclass(frozen=True, kw_only=True)
class CalibrationStudy:
    """A study file. The first set is the one that the others are compared with."""

    name: str = "calibration"  # of the series of records
    model: str
    methods: Mapping[str, Mapping[str, Any]]  # name -> `rule` and `transform` of a recipe
    sets: Mapping[str, str | tuple[str, ...]]  # name -> calibrate.data of a recipe
    samples: tuple[int, ...] = (128,)
    tokens: int = 512
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5)  # with fewer than 6 no difference can be called
    split_at: str | None = None  # of the sets
    chat_template: bool = False  # of the sets
    evaluate: EvaluateOn = field(default_factory=EvaluateOn)
    trust_remote_code: bool = False


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One combination: a model to be made and measured."""

    method: str
    set: str
    samples: int
    seed: int


def load_study(path: Path, overrides: Sequence[str] = ()) -> CalibrationStudy:
    """Raises RecipeError with the path of the offending key, also where a method's recipe is
    wrong, and what reading its texts raises: before anything is measured."""
    return parse_study(override(read_recipe(path), overrides), str(path))


def parse_study(data: Mapping[str, Any], where: str = "study") -> CalibrationStudy:
    """As `load_study`, of a dictionary."""
    unknown_keys(CalibrationStudy, data, where)
    if isinstance(data.get("evaluate"), dict):
        unknown_keys(EvaluateOn, data["evaluate"], f"{where}: evaluate")
    study: CalibrationStudy = typed(CalibrationStudy, data, f"{where}: ")
    for axis in ("methods", "sets", "samples", "seeds"):
        _check_axis(list(getattr(study, axis)), f"{where}: {axis}")
    for cell in cells(study):
        recipe_of(study, cell, where)
    for source in sorted({s for data in study.sets.values() for s in _sources(data)}):
        _check_source(source, study.split_at)
    for source in study.evaluate.data:
        documents(source, split_at=study.evaluate.split_at)
    return study


def _check_axis(values: list[Any], where: str) -> None:
    if not values:
        raise RecipeError(f"{where}: is empty; expected at least one")
    if len(set(values)) < len(values):
        raise RecipeError(f"{where}: {values}: each value counts once; remove the repeated one")


def _sources(data: str | Sequence[str]) -> Iterator[str]:
    """The sources of a set, mixes taken apart."""
    for source in [data] if isinstance(data, str) else data:
        yield from parse_mix(source) or [source]


def _check_source(source: str, split_at: str | None) -> None:
    name = source.partition(":")[0]
    if not (name in CALIBRATIONS and CALIBRATIONS[name].generated):
        documents(source, split_at=split_at)


def cells(study: CalibrationStudy) -> Iterator[Cell]:
    """Every combination; seeds outermost, so that a study that is stopped has whole comparisons."""
    for seed, samples, method, name in itertools.product(
        study.seeds, study.samples, study.methods, study.sets
    ):
        yield Cell(method=method, set=name, samples=samples, seed=seed)


def recipe_of(study: CalibrationStudy, cell: Cell, where: str = "study") -> Recipe:
    """What a cell quantizes by. Raises RecipeError naming the method."""
    method, data = study.methods[cell.method], study.sets[cell.set]
    if unknown := [key for key in method if key not in METHOD_KEYS]:
        raise RecipeError(
            f"{where}: methods.{cell.method}: unknown key {unknown[0]!r}; known: "
            f"{', '.join(METHOD_KEYS)}"
        )
    recipe = dict(method) | {
        "model": study.model,
        "seed": cell.seed,
        "trust_remote_code": study.trust_remote_code,
        "calibrate": {
            "data": [data] if isinstance(data, str) else list(data),
            "samples": cell.samples, "tokens": study.tokens, "split_at": study.split_at,
            "chat_template": study.chat_template,
        },
    }  # fmt: skip
    return parse_recipe(recipe, f"{where}: methods.{cell.method}")


def subject_of(study: CalibrationStudy, cell: Cell, fingerprint: str) -> dict[str, Any]:
    """Everything that decides a cell's result, in words; files by what they hold."""
    data = study.sets[cell.set]
    named = {*_sources(data), *study.evaluate.data}
    return {
        "model": study.model, "fingerprint": fingerprint,
        "method": cell.method, "recipe": _plain(study.methods[cell.method]),
        "set": cell.set, "data": [data] if isinstance(data, str) else list(data),
        "split_at": study.split_at, "chat_template": study.chat_template,
        "samples": cell.samples, "tokens": study.tokens, "seed": cell.seed,
        "evaluate": _plain(asdict(study.evaluate)),
        "files": {
            source: hashlib.sha256(Path(source).read_bytes()).hexdigest()
            for source in sorted(named) if Path(source).is_file()
        },
    }  # fmt: skip


def key_of(study: CalibrationStudy, cell: Cell, fingerprint: str) -> str:
    """Equal for cells that give the same result."""
    return record_key(subject_of(study, cell, fingerprint))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
