"""Recipes that name a budget: the plan is found first, and then carried out like any recipe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pennyweight.core import Progress, RecipeError
from pennyweight.evaluate import Settings
from pennyweight.model.engine import Engine
from pennyweight.pipeline.job import Job
from pennyweight.pipeline.quantize import Result
from pennyweight.pipeline.quantize import quantize as carry_out
from pennyweight.pipeline.recipe import Recipe
from pennyweight.pipeline.tasks import TaskSettings
from pennyweight.study.bank import Ingredients
from pennyweight.study.planning.budget import parse_budget
from pennyweight.study.planning.pins import parse_pin
from pennyweight.study.planning.planner import Planned, plan
from pennyweight.study.planning.wish import Wish

PLANNED = "plan.toml"


def quantize(
    recipe: Recipe | Path | Job,
    output: str | Path,
    *,
    engine: Engine | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Result:
    """`pipeline.quantize`, after planning if the recipe names a budget; `options` are its own.

    What planning measured stays in the folder `<output>.plan`. Raises what both raise, before all
    BudgetError.
    """
    means: dict[str, Any] = {"engine": engine, "threads": threads, "progress": progress}
    if isinstance(recipe, Recipe) and recipe.budget:
        recipe = planned_recipe(recipe, plan_first(recipe, Path(output), **means))
    return carry_out(recipe, output, **means, **options)


def plan_first(
    recipe: Recipe,
    output: Path,
    *,
    engine: Engine | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Planned:
    """The plan for a recipe's budget, in `<output>.plan`; what is there is not measured again."""
    folder = output.with_name(f"{output.name}.plan")
    wish = wish_of(recipe)
    return plan(
        wish, folder / PLANNED, work=folder, engine=engine, threads=threads, progress=progress
    )


def planned_recipe(asked: Recipe, planned: Planned) -> Recipe:
    """What to carry out: the rules that were found, and where the result is to go."""
    return replace(planned.recipe, target=asked.target, engine=asked.engine)


def wish_of(recipe: Recipe) -> Wish:
    """What a recipe with a budget asks of a plan.

    Raises RecipeError for what cannot be planned with.
    """
    usual, how = Recipe(), recipe.plan
    if not recipe.model:
        raise RecipeError("no model: name a directory or a Hub id")
    for key in ("compute", "min_expert_tokens"):
        if getattr(recipe, key) != getattr(usual, key):
            raise RecipeError(
                f"{key}: a plan is searched with its default, {getattr(usual, key)!r}; leave it "
                "out, and lay it over the plan that `pennyweight plan` writes"
            )
    return Wish(
        ingredients=Ingredients(
            model=recipe.model, quantizer=how.quantizer, options=how.options,
            calibrate=recipe.calibrate, seed=recipe.seed,
            trust_remote_code=recipe.trust_remote_code,
        ),
        budget=parse_budget(recipe.budget),
        minimise=how.minimize, schemes=how.schemes,
        pins=tuple(parse_pin(pin) for pin in how.pin),
        sense=None if how.sense is None else Path(how.sense), sense_train=how.sense_train,
        costs=None if how.costs is None else Path(how.costs), price_per_hour=how.price_per_hour,
        granularity=how.granularity, also=how.also,
        estimator=how.estimator, estimator_options=how.estimator_options,
        allocator=how.allocator, allocator_options=how.allocator_options,
        sense_data=how.sense_data, data=how.data, split_at=how.split_at,
        settings=Settings(
            max_tokens=how.max_tokens, document_tokens=how.document_tokens, seed=recipe.seed
        ),
        asking=TaskSettings(
            tasks=(), limit=how.limit, shots=how.shots, chat_template=how.chat_template,
            run_code=how.run_code,
        ),
        rounds=how.rounds, any_engine=recipe.engine == "any",
        transform=recipe.transform, train=recipe.train,
    )  # fmt: skip
