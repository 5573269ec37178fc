"""What a user asks of a plan, and whether it can be asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pennyweight.core import DataError, Progress, RecipeError
from pennyweight.evaluate import Settings
from pennyweight.formats.schemes import UNTOUCHED
from pennyweight.pipeline.servable import unservable_scheme
from pennyweight.pipeline.survey import Survey
from pennyweight.study.bank import Ingredients
from pennyweight.study.planning.budget import Budget
from pennyweight.study.planning.costs import Costs, measured_costs, ratio_costs, size_costs
from pennyweight.study.planning.offer import offered
from pennyweight.study.planning.pins import Pin
from pennyweight.study.sensitivity.sense import Places, sense
from pennyweight.study.sensitivity.sensing import TEXT, Request
from pennyweight.study.sensitivity.table import Sensitivity

FRESH = ("stdlib-heldout",)


def text_settings() -> Settings:
    """The start of each of many documents says more than the whole of a few."""
    return Settings(max_tokens=16384, document_tokens=512)


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a user asks of a plan."""

    ingredients: Ingredients
    budget: Budget
    minimise: str = "size"  # size, ratio, or cost with a file
    schemes: tuple[str, ...] = ()  # none: `offered` decides
    pins: tuple[Pin, ...] = ()
    sense: Path | None = None  # a table that was measured before
    granularity: str = "fused"
    estimator: str = "direct"
    sense_data: tuple[str, ...] = TEXT
    data: tuple[str, ...] = FRESH  # on which candidates are measured
    split_at: str | None = None
    settings: Settings = field(default_factory=text_settings)
    allocator: str = "exact"
    allocator_options: Mapping[str, Any] = field(default_factory=dict)
    costs: Path | None = None  # a file of measured costs
    rounds: int = 6
    any_engine: bool = False


def costs_of(wish: Wish, shapes: Mapping[str, tuple[int, int]]) -> Costs:
    """What is to be small. Raises RecipeError for what does not go together."""
    if wish.budget.name == "ratio" or (wish.minimise == "ratio" and not wish.costs):
        return ratio_costs()
    if wish.budget.name == "bits" or (wish.minimise == "size" and not wish.costs):
        return size_costs()
    if wish.costs is None:
        raise RecipeError(
            f"--minimize {wish.minimise}: needs --costs FILE with what each shape takes; without a "
            "file size and ratio can be minimised"
        )
    return measured_costs(wish.costs, shapes)


def schemes_of(wish: Wish, seen: Survey) -> tuple[str, ...]:
    """Raises RecipeError for what vLLM cannot serve unless any engine will do."""
    schemes = wish.schemes or offered(seen, any_engine=wish.any_engine)
    if not wish.any_engine:
        for scheme in (*schemes, *(pin.scheme for pin in wish.pins)):
            if fault := unservable_scheme(scheme):
                raise RecipeError(f"{fault}; --any-engine plans with it all the same")
    return schemes


def known_table(wish: Wish, seen: Survey) -> Sensitivity:
    """The table of a file. Raises CheckpointError, RecipeError if it is not of this model."""
    assert wish.sense is not None
    table = Sensitivity.load(wish.sense)
    table.require_model(seen.skeleton.checkpoint.fingerprint, str(wish.sense))
    if table.quantizer != wish.ingredients.quantizer:
        raise RecipeError(
            f"{wish.sense}: was measured with {table.quantizer}, and the plan is to use "
            f"{wish.ingredients.quantizer}; say --quantizer {table.quantizer}, or measure again"
        )
    planned = {tensor for unit in table.units for tensor in unit.tensors}
    if odd := planned ^ set(seen.by_tensor):
        raise RecipeError(f"{wish.sense}: {min(odd)} is in the table or in the model alone")
    return table


def sensed(
    wish: Wish, schemes: tuple[str, ...], work: Path, threads: int | None, progress: Progress
) -> Sensitivity:
    wanted = tuple(dict.fromkeys((*schemes, *(pin.scheme for pin in wish.pins))))
    request = Request(
        ingredients=wish.ingredients, schemes=tuple(s for s in wanted if s != UNTOUCHED),
        granularity=wish.granularity, estimator=wish.estimator, data=wish.sense_data,
        split_at=wish.split_at, settings=wish.settings,
    )  # fmt: skip
    places = Places(output=work / "sense.json", keep_work=True)
    return sense(request, places, threads=threads, progress=progress)[0]


def require_fresh(table: Sensitivity, wish: Wish, digest: str) -> None:
    """Candidates must be measured on text that their units were not."""
    shared = set(table.settings.get("data", ())) & set(wish.data)
    if table.data == digest or shared:
        name = min(shared, default=", ".join(wish.data))
        raise DataError(
            f"{name}: the sensitivities were measured on it, so that a plan would be proved on "
            "what it was chosen by; give other text with --data"
        )


def restricted(table: Sensitivity, schemes: set[str]) -> Sensitivity:
    """The table with these schemes. Raises RecipeError for a unit that none is left of, or a scheme
    that no unit was measured in."""
    if missing := schemes - set(table.schemes):
        raise RecipeError(
            f"{min(missing)}: not among the schemes that were measured: {', '.join(table.schemes)}"
        )
    units = []
    for unit in table.units:
        options = {name: loss for name, loss in unit.options.items() if name in schemes}
        # What can take none of the schemes stays as it is.
        units.append(replace(unit, options=options or {UNTOUCHED: unit.options[UNTOUCHED]}))
    return replace(table, units=tuple(units))
