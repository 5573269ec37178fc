"""A plan as a file that people read and edit, and beside it all that was measured on the way.

The file is a recipe: its rules name tensors, and comments say what each is thought to lose. So
`pennyweight quantize --recipe plan.toml` carries it out, and whoever disagrees changes a line.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from pennyweight.core import RecipeError
from pennyweight.pipeline.recipe import Recipe, Rule
from pennyweight.study.planning.budget import Budget
from pennyweight.study.planning.candidate import Candidate
from pennyweight.study.sensitivity.table import Loss, Sensitivity


def plan_text(
    recipe: Recipe, chosen: Candidate, table: Sensitivity, budget: Budget, correction: float
) -> str:
    """The TOML of a plan. recipe: its rules in the order of the table's units."""
    lines = [*_head(chosen, table, budget), "", *_top(recipe)]
    rules = {rule.match: rule for rule in recipe.rule}
    left = list(rules.values())
    for unit in table.units:
        scheme = chosen.schemes[unit.name]
        lines += ["", f"# {unit.name}: {_told(unit.options[scheme], correction)}"]
        mine = [rule for rule in left if rule.match in _own(rule, unit.tensors)]
        for rule in mine:
            left.remove(rule)
            lines += _rule(rule)
    assert not left, "every rule is of a unit"
    return "\n".join(lines) + "\n"


def _own(rule: Rule, tensors: tuple[str, ...]) -> set[str]:
    return {rule.match} if any(fnmatch.fnmatchcase(t, rule.match) for t in tensors) else set()


def _head(chosen: Candidate, table: Sensitivity, budget: Budget) -> Iterator[str]:
    figures, measured = chosen.figures, chosen.measured
    loss = measured.loss
    yield f"# Plan for {table.model}: {budget}"
    where = f"{measured.tokens} tokens that the search has not seen"
    if budget.tasks:
        where = f"{', '.join(budget.tasks)}, on which no unit was measured"
    yield (
        f"# Measured on {where}: lost {loss.value:.5g} {budget.kind.unit} (95 % interval "
        f"{loss.low:.5g} to {loss.high:.5g}); predicted {chosen.predicted:.5g}."
    )
    if kept := measured.recovery_percent:
        yield f"# Recovery {kept.value:.5g} % ({kept.low:.5g} to {kept.high:.5g})."
    yield (
        f"# {figures.bits_per_weight:.4f} bits per weight of {table.parameters} considered, "
        f"{figures.size_bytes:.0f} bytes; quantization ratio {figures.quantization_ratio:.4f} "
        f"({figures.quantization_ratio_with_scales:.4f} with scales)."
    )
    yield "# Each unit: what it is predicted to lose here, and what it lost alone when measured."


def _told(loss: Loss, correction: float) -> str:
    alone = f"{loss.value:.3g}"
    if loss.lower is not None and loss.upper is not None:
        alone += f" ({loss.lower:.3g} to {loss.upper:.3g})"
    return f"predicted {correction * loss.value:.3g} nats, alone {alone}"


def _top(recipe: Recipe) -> Iterator[str]:
    """What differs from the defaults of a recipe, but for the rules."""
    values, usual = asdict(recipe), asdict(Recipe())
    yield f"model = {toml(recipe.model)}"
    for key, value in values.items():
        if key not in ("model", "rule") and value != usual[key]:
            yield f"{key} = {toml(_changed(value, usual[key]))}"


def _changed(value: Any, usual: Any) -> Any:
    if isinstance(value, Mapping) and isinstance(usual, Mapping):
        return {k: v for k, v in value.items() if v != usual.get(k)}
    return value


def _rule(rule: Rule) -> Iterator[str]:
    yield "[[rule]]"
    yield f"match = {toml(rule.match)}"
    yield f"scheme = {toml(rule.scheme)}"
    if rule.scheme != "W16A16":
        yield f"quantizer = {toml(rule.quantizer)}"
    if rule.options:
        yield f"options = {toml(dict(rule.options))}"


def toml(value: Any) -> str:
    """A TOML value on one line. Raises RecipeError for what TOML has no place for."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, Mapping):
        pairs = (f"{json.dumps(k)} = {toml(v)}" for k, v in value.items() if v is not None)
        return f"{{ {', '.join(pairs)} }}"
    raise RecipeError(f"{value!r:.60}: a recipe file has no place for it")
