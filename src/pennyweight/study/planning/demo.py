"""`pennyweight demo`: the bundled model in one scheme for all, and planned for a budget."""

from __future__ import annotations

from pathlib import Path

from pennyweight.core import Progress
from pennyweight.pipeline.demo import (
    CALIBRATE,
    MODEL,
    PLANNED,
    PLANNING,
    PROMPT,
    Demo,
    Version,
    begin,
    seen,
    uniform_version,
    write,
)
from pennyweight.pipeline.quantize import quantize
from pennyweight.pipeline.recipe import Planning, Recipe
from pennyweight.study.planning.budgeted import PLANNED as PLAN_FILE
from pennyweight.study.planning.budgeted import plan_first, planned_recipe

SCHEMES = ("W4A16_g128", "W4A16_g32", "W8A16_g128")  # vLLM serves each


def run_demo(output: Path, scheme: str, budget: str, progress: Progress) -> Demo:
    """Quantize in one scheme and by plan, measure both against the original, let all three write.

    Raises CheckpointError if `output` is something else than an earlier demo; BudgetError if no
    plan keeps the budget.
    """
    begin(output)
    uniform = uniform_version(output, scheme, progress)
    planned = _planned(output, budget, progress)
    return Demo(
        folder=output, original_writes=write(MODEL, PROMPT), versions=(uniform, planned),
        plan=output / f"{PLANNED}.plan" / PLAN_FILE,
    )  # fmt: skip


def _planned(output: Path, budget: str, progress: Progress) -> Version:
    """The estimate from one backward pass is enough to rank the layers of a model this small."""
    progress.say(f"planning for {budget}: what each part loses in {', '.join(SCHEMES)}")
    how = Planning(
        schemes=SCHEMES, estimator="fisher", data=(str(output / PLANNING),), max_tokens=8192,
        rounds=5,
    )  # fmt: skip
    asked = Recipe(model=MODEL, budget=budget, plan=how, engine="vllm", calibrate=CALIBRATE)
    place = output / PLANNED
    found = plan_first(asked, place, progress=progress)
    result = quantize(planned_recipe(asked, found), place, progress=progress)
    return seen(output, f"planned, {budget}", result, progress)
