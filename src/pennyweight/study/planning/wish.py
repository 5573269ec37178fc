"""What a user asks of a plan, and whether it can be asked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pennyweight.core import DataError, Progress, RecipeError
from pennyweight.evaluate import Settings
from pennyweight.formats.schemes import UNTOUCHED
from pennyweight.model.engine import Engine
from pennyweight.pipeline.recipe import Rewrite, Training
from pennyweight.pipeline.servable import unservable_scheme
from pennyweight.pipeline.survey import Survey
from pennyweight.pipeline.tasks import TaskSettings
from pennyweight.study.bank import Ingredients
from pennyweight.study.beside import ALSO
from pennyweight.study.planning.budget import Budget
from pennyweight.study.planning.costs import (
    SECONDS,
    Costs,
    measured_costs,
    priced,
    ratio_costs,
    size_costs,
)
from pennyweight.study.planning.offer import offered
from pennyweight.study.planning.pins import Pin
from pennyweight.study.sensitivity.sense import Places, sense
from pennyweight.study.sensitivity.sensing import TEXT, Request
from pennyweight.study.sensitivity.table import Sensitivity

PLANNED_ALSO = ("lm_head",)  # kinds of `study.beside` that a recipe has a place for
FRESH = ("stdlib-heldout",)
COUNTED = ("size", "ratio")  # known from the plan alone
MINIMISED = (*COUNTED, "latency", "cost")
NO_TASKS = TaskSettings(tasks=())


def text_settings() -> Settings:
    """The start of each of many documents says more than the whole of a few."""
    return Settings(max_tokens=16384, document_tokens=512)


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a user asks of a plan."""

    ingredients: Ingredients
    budget: Budget
    minimise: str = "size"  # one of `MINIMISED`
    schemes: tuple[str, ...] = ()  # none: `offered` decides
    pins: tuple[Pin, ...] = ()
    sense: Path | None = None  # a table that was measured before
    granularity: str = "fused"
    also: tuple[str, ...] = ()  # of PLANNED_ALSO
    estimator: str = "direct"
    estimator_options: Mapping[str, Any] = field(default_factory=dict)
    sense_data: tuple[str, ...] = TEXT
    data: tuple[str, ...] = FRESH  # on which candidates are measured
    split_at: str | None = None
    settings: Settings = field(default_factory=text_settings)
    allocator: str = "exact"
    allocator_options: Mapping[str, Any] = field(default_factory=dict)
    costs: Path | None = None  # a file of measured costs
    price_per_hour: float | None = None  # makes seconds of that file money
    asking: TaskSettings = NO_TASKS  # how the tasks of the budget are put
    rounds: int = 6
    any_engine: bool = False
    # Of every candidate. Units are measured without transforms: what these fold into norms cannot
    # be exchanged linear by linear. Of trainers, too, only those count that change linears alone.
    transform: tuple[Rewrite, ...] = ()
    train: tuple[Training, ...] = ()
    sense_train: bool = False  # if not, units are measured without any: faster and no worse

    @property
    def sensed_train(self) -> tuple[Training, ...]:
        """Those of the trainers that units are measured with."""
        if not self.sense_train:
            return ()
        return tuple(training for training in self.train if training.make().linears_alone)


def costs_of(wish: Wish, shapes: Mapping[str, tuple[int, int]]) -> Costs:
    """What is to be small. Raises RecipeError for what does not go together."""
    minimise = wish.minimise
    if minimise not in MINIMISED:
        raise RecipeError(f"--minimize {minimise}: expected one of {', '.join(MINIMISED)}")
    if wish.price_per_hour is not None and minimise != "cost":
        raise RecipeError("--price-per-hour: makes seconds a cost; expected --minimize cost")
    if wish.budget.bounded == "cost":
        if wish.costs is not None or minimise not in COUNTED:
            raise RecipeError(
                f"{wish.budget}: bounds what is spent, and the loss is minimised; leave --minimize "
                "and --costs out, or give a budget of a loss"
            )
        return ratio_costs() if wish.budget.name == "ratio" else size_costs()
    if wish.costs is not None:
        return _measured(wish, wish.costs, shapes)
    if minimise not in COUNTED:
        raise RecipeError(
            f"--minimize {minimise}: needs --costs FILE with what each shape takes; make it with "
            f"pennyweight costs {wish.ingredients.model} -o costs.json, or minimise size or ratio"
        )
    return ratio_costs() if minimise == "ratio" else size_costs()


def _measured(wish: Wish, path: Path, shapes: Mapping[str, tuple[int, int]]) -> Costs:
    """The costs of a file, which `size`, the default, leaves to say what it holds."""
    if wish.minimise == "ratio":
        raise RecipeError("--costs: says nothing to --minimize ratio; expected latency or cost")
    found = measured_costs(path, shapes)
    if wish.price_per_hour is not None:
        found = priced(found, wish.price_per_hour)
    if wish.minimise not in ("size", found.name):
        price = ", or give --price-per-hour" if found.unit == SECONDS else ""
        raise RecipeError(
            f"--minimize {wish.minimise}: {path} holds {found.name} in {found.unit}; say "
            f"--minimize {found.name}{price}"
        )
    return found


def schemes_of(wish: Wish, seen: Survey, costs: Costs) -> tuple[str, ...]:
    """Those that the user named; else those whose cost is known, or the usual ones.

    Raises RecipeError for what vLLM cannot serve unless any engine will do.
    """
    _require_planned(wish.also, "--also")
    schemes = wish.schemes or costs.schemes or offered(seen, any_engine=wish.any_engine)
    if not wish.schemes and not wish.any_engine:
        schemes = tuple(name for name in schemes if not unservable_scheme(name))
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
    measured = dict(table.settings.get("quantizer_options", {}))
    if measured != dict(wish.ingredients.options):
        raise RecipeError(
            f"{wish.sense}: was measured with {table.quantizer} {measured}, and the plan is to use "
            f"{dict(wish.ingredients.options)}; say the same with --set quantizer.KEY=VALUE"
        )
    _require_trained(table, wish)
    _require_planned([unit.kind for unit in table.units if unit.kind in ALSO], str(wish.sense))
    planned = {t for unit in table.units for t in unit.tensors if unit.kind not in ALSO}
    if odd := planned ^ set(seen.by_tensor):
        raise RecipeError(f"{wish.sense}: {min(odd)} is in the table or in the model alone")
    return table


def _require_trained(table: Sensitivity, wish: Wish) -> None:
    """A plan may train what was measured untrained, but not the other way round."""
    planned = [asdict(training) for training in wish.train]
    for training in table.settings.get("train", ()):
        if training not in planned:
            raise RecipeError(
                f"{wish.sense}: was measured with the trainer {training['name']} "
                f"{training['options']}, and the plan has no such one; say --train "
                f"{training['name']}, or measure again"
            )


def _require_planned(kinds: Iterable[str], where: str) -> None:
    """Raises RecipeError for units whose scheme no recipe can hold."""
    for kind in kinds:
        if kind not in PLANNED_ALSO:
            raise RecipeError(
                f"{where}: {kind} can be measured (`pennyweight sense`) but not planned: a recipe "
                f"has no place for its format; besides linears of blocks it has one for "
                f"{', '.join(PLANNED_ALSO)}"
            )


def sensed(
    wish: Wish,
    schemes: tuple[str, ...],
    work: Path,
    threads: int | None,
    progress: Progress,
    engine: Engine | None = None,
) -> Sensitivity:
    wanted = tuple(dict.fromkeys((*schemes, *(pin.scheme for pin in wish.pins))))
    request = Request(
        ingredients=replace(wish.ingredients, train=wish.sensed_train),
        schemes=tuple(s for s in wanted if s != UNTOUCHED),
        granularity=wish.granularity, also=wish.also, estimator=wish.estimator,
        options=wish.estimator_options, data=wish.sense_data, split_at=wish.split_at,
        settings=wish.settings,
    )  # fmt: skip
    places = Places(output=work / "sense.json", keep_work=True)
    return sense(request, places, engine=engine, threads=threads, progress=progress)[0]


def require_fresh(table: Sensitivity, wish: Wish, digest: str) -> None:
    """Candidates must be measured on text that their units were not."""
    shared = set(table.settings.get("data", ())) & {*wish.data, *wish.budget.tasks}
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
