"""The verb `plan`: the cheapest mix of schemes inside a budget, measured and not promised."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pennyweight.allocate import ALLOCATORS
from pennyweight.allocate.base import Allocator, Assignment, Option, Problem, Unit
from pennyweight.core import BudgetError, Progress, RecipeError
from pennyweight.evaluate import plain
from pennyweight.formats.schemes import UNTOUCHED
from pennyweight.model.checkpoint import Checkpoint
from pennyweight.model.engine import Engine
from pennyweight.model.resolve import resolve_model
from pennyweight.model.skeleton import Skeleton
from pennyweight.model.writer import disk_errors, write_text
from pennyweight.pipeline.engine import Keeping
from pennyweight.pipeline.recipe import Recipe, make_from
from pennyweight.pipeline.survey import survey
from pennyweight.records import Store
from pennyweight.study.planning.budget import Budget
from pennyweight.study.planning.build import Builder
from pennyweight.study.planning.candidate import Candidate, figures, summed_loss
from pennyweight.study.planning.costs import Costs
from pennyweight.study.planning.exam import Exam
from pennyweight.study.planning.pins import pinned
from pennyweight.study.planning.plan_file import plan_text
from pennyweight.study.planning.score_map import ScoreMap
from pennyweight.study.planning.search import Outcome, Search, cheapest
from pennyweight.study.planning.wish import (
    NO_TASKS,
    Wish,
    costs_of,
    known_table,
    require_fresh,
    restricted,
    schemes_of,
    sensed,
)
from pennyweight.study.sensitivity.table import Sensitivity
from pennyweight.study.texts import read_texts

POINTS = 12  # of the predicted frontier
BLAMED = 3  # units that an error names


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What `plan` made."""

    path: Path
    recipe: Recipe
    chosen: Candidate
    outcome: Outcome
    table: Sensitivity
    noise: float | None  # what the reference loses against itself in 16 bits; None: not asked
    facts: Mapping[str, Any]  # the content of the file beside the plan


def plan(
    wish: Wish,
    output: Path,
    *,
    work: Path | None = None,
    engine: Engine | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Planned:
    """Write the plan to `output` and all candidates to `<output>.frontier.json` beside it.

    work: a folder that an interrupted call continues in, `<output>.work` unless given. engine:
    shares out the units that are measured one by one, and what candidates are calibrated on.
    Raises
    BudgetError if nothing is inside the budget, the budget is inside the noise of 16 bits, or its
    tasks have too few items;
    RecipeError for pins, schemes and tables that cannot be; and what quantizing raises.
    """
    work = work or output.with_name(f"{output.name}.work")
    progress = progress or Progress()
    with disk_errors(work):
        work.mkdir(parents=True, exist_ok=True)
    planner = Planner.open(wish, work, threads, progress, engine)
    outcome = planner.search()
    best = planner.require(outcome)
    recipe = planner.builder.recipe(best.schemes)
    text = plan_text(recipe, best, planner.table, wish.budget, outcome.correction)
    facts = planner.facts(outcome, best)
    write_text(output, text)
    write_text(frontier_file(output), json.dumps(plain(facts), indent=1, allow_nan=False) + "\n")
    return Planned(
        path=output, recipe=recipe, chosen=best, outcome=outcome, table=planner.table,
        noise=planner.noise, facts=facts,
    )  # fmt: skip


def frontier_file(output: Path) -> Path:
    return output.with_name(f"{output.name.removesuffix('.toml')}.frontier.json")


@dataclass(frozen=True, kw_only=True)
class Planner:
    """A wish with everything that is needed to grant it."""

    wish: Wish
    table: Sensitivity
    builder: Builder
    costs: Costs
    pins: Mapping[str, str]
    allocator: Allocator
    noise: float | None

    @classmethod
    def open(
        cls,
        wish: Wish,
        work: Path,
        threads: int | None,
        progress: Progress,
        engine: Engine | None = None,
    ) -> Planner:
        """All that can be refused is refused before anything is measured."""
        allocator = make_from(ALLOCATORS, wish.allocator, wish.allocator_options, "--allocator")
        path = resolve_model(wish.ingredients.model)
        seen = survey(Skeleton.build(Checkpoint.open(path), wish.ingredients.trust_remote_code))
        shapes = {site.tensor: site.shape for site in seen.quantizable.values()}
        costs = costs_of(wish, shapes)
        schemes = schemes_of(wish, seen, costs)
        store = work / "records.sqlite"
        exam = _exam(wish, Keeping(records=store), threads, progress)
        known = known_table(wish, seen) if wish.sense else None
        texts = read_texts(
            path, seen.skeleton.model, wish.data, split_at=wish.split_at, settings=wish.settings
        )
        build = partial(
            Builder, ingredients=wish.ingredients, budget=wish.budget, texts=texts, folder=work,
            store=Store.open(store), engine="any" if wish.any_engine else "vllm",
            threads=threads, progress=progress, exam=exam, sharing=engine,
            transform=wish.transform, train=wish.train,
        )  # fmt: skip
        noise = _noise(build(table=None), wish.budget)  # whose models are let go before the next
        table = known or sensed(wish, schemes, work, threads, progress, engine)
        require_fresh(table, wish, texts.digest)
        table = restricted(table, {*schemes, *(pin.scheme for pin in wish.pins)})
        return cls(
            wish=wish, table=table, builder=build(table=table), costs=costs,
            pins=pinned(wish.pins, table), allocator=allocator, noise=noise,
        )  # fmt: skip

    @property
    def units(self) -> tuple[Unit, ...]:
        """What there is to choose from; a pinned unit has one option."""
        return tuple(
            Unit(
                name=unit.name,
                options=tuple(
                    Option(scheme=scheme, loss=loss.value, cost=self.costs.of(unit, scheme))
                    for scheme, loss in unit.options.items()
                    if self.pins.get(unit.name, scheme) == scheme
                    and self.costs.offers(unit, scheme)
                ),
            )
            for unit in self.table.units
        )

    def allocate(self, budget: float) -> Assignment:
        """The cheapest assignment whose losses add up to at most `budget`."""
        return cheapest(self.units, budget, self.allocator, self.wish.ingredients.seed)

    def search(self) -> Outcome:
        if self.wish.budget.bounded == "cost":
            return self._within_cost()
        budget, losses = self.wish.budget, [[o.loss for o in u.options] for u in self.units]
        search = Search(
            limit=budget.nats(budget.allowed),
            least=math.fsum(map(min, losses)),
            smallest=min((x for each in losses for x in each if x > 0), default=budget.allowed),
            allocate=self.allocate,
            build=lambda schemes, correction: self.build(schemes, correction, search.found),
            upper=lambda one: budget.nats(one.measured.loss.high),
            value=self._nats_lost,
            rounds=self.wish.rounds,
            scales=not budget.tasks,
        )
        return search()

    def _nats_lost(self, one: Candidate) -> float:
        """What the sum of the units' losses is to be compared with; of a score it is the KL."""
        budget, measured = self.wish.budget, one.measured
        return measured.kl_nats.value if budget.tasks else budget.nats(measured.loss.value)

    def predicted(self, summed: float, correction: float, known: Sequence[Candidate]) -> float:
        """In the metric of the budget, from the sum, its correction, or what `known` ones lost."""
        budget = self.wish.budget
        if budget.tasks:
            return ScoreMap.through(known, budget.of_nats)(summed)
        return budget.of_nats(correction * summed)

    def _within_cost(self) -> Outcome:
        """The least loss at a cost; the cost is known, so there is one candidate."""
        budget, total = self.wish.budget, self.table.parameters
        limit = total * (budget.limit / 8 if budget.name == "bits" else 1 - budget.limit)
        problem = Problem(units=self.units, minimise="loss", budget=limit)
        schemes = self.allocator(problem, self.wish.ingredients.seed).schemes
        one = replace(self.build(schemes, 1.0), inside=True)
        observed = one.measured.loss.value / one.summed if one.summed > 0 else 1.0
        return Outcome(candidates=(one,), best=one, tight=True, correction=observed)

    def build(
        self, schemes: Assignment, correction: float, known: Sequence[Candidate] = ()
    ) -> Candidate:
        say = self.builder.progress.say
        summed, found = summed_loss(schemes, self.table), figures(schemes, self.table)
        by_name = {unit.name: unit for unit in self.table.units}
        predicted = self.predicted(summed, correction, known)
        say(f"building {found.bits_per_weight:.3f} bits, predicted {predicted:.5g}")
        measured = self.builder.measure(schemes)
        inside = measured.loss.high <= self.wish.budget.allowed
        say(
            f"measured {measured.loss.value:.5g} ({measured.loss.low:.5g} to "
            f"{measured.loss.high:.5g}), budget {self.wish.budget}"
        )
        return Candidate(
            schemes=dict(schemes), summed=summed, predicted=predicted,
            cost=math.fsum(self.costs.of(by_name[n], scheme) for n, scheme in schemes.items()),
            figures=found, measured=measured, inside=inside,
        )  # fmt: skip

    def require(self, outcome: Outcome) -> Candidate:
        """The best candidate. Raises BudgetError if there is none that quantizes anything."""
        best, rounds = outcome.best, self.wish.rounds
        if best is not None and set(best.schemes.values()) != {UNTOUCHED}:
            return best
        if best is not None and best.cost <= self._least_cost:
            raise BudgetError(
                f"{self.wish.budget}: leaving every weight as it is takes the least "
                f"{self.costs.name} of all, {best.cost:.4g} {self.costs.unit}; there is nothing to "
                "plan. Offer other schemes, measure costs with more --tokens, or minimise size"
            )
        nearest = min(
            (one for one in outcome.candidates if one is not best),
            key=lambda one: one.measured.loss.high,
            default=None,
        )
        if nearest is None:
            raise BudgetError(
                f"{self.wish.budget}: any of these schemes on any unit is predicted to lose more; "
                "allow more, or offer finer schemes"
            )
        if best is None and not outcome.tight:
            end = f"none of the {rounds} candidates is inside; the nearest"
        else:
            end = "out of reach with these schemes; the best that quantizes anything"
        loss, blamed = nearest.measured.loss, ", ".join(self._blamed(nearest))
        raise BudgetError(
            f"{self.wish.budget}: {end} was measured at {loss.value:.5g} ({loss.low:.5g} to "
            f"{loss.high:.5g}). In the way: {blamed}. Allow more, offer these a finer scheme, or "
            f"give more {'items' if self.wish.budget.tasks else 'text'} to measure on "
            f"{'' if self.wish.budget.tasks else '(--max-tokens) '}for a narrower interval"
        )

    @property
    def _least_cost(self) -> float:
        return math.fsum(min(option.cost for option in unit.options) for unit in self.units)

    def _blamed(self, nearest: Candidate) -> list[str]:
        losses = {
            unit.name: unit.options[nearest.schemes[unit.name]].value for unit in self.table.units
        }
        order = sorted(losses, key=lambda name: -losses[name])[:BLAMED]
        return [f"{name} in {nearest.schemes[name]} ({losses[name]:.3g} alone)" for name in order]

    def facts(self, outcome: Outcome, best: Candidate) -> dict[str, Any]:
        """What the file beside the plan holds."""
        table = self.table
        return {
            "model": table.model, "fingerprint": table.fingerprint,
            "budget": {"text": str(self.wish.budget), **asdict(self.wish.budget),
                       "bounded": self.wish.budget.bounded,
                       "metric": self.wish.budget.kind.metric,
                       "measured": self.wish.budget.measured,
                       "allowed": self.wish.budget.allowed, "unit": self.wish.budget.kind.unit},
            "minimise": self.costs.name, "cost_unit": self.costs.unit,
            "allocator": self.wish.allocator, "estimator": table.estimator,
            "quantizer": table.quantizer,
            "transform": [each.name for each in self.wish.transform],
            "train": [each.name for each in self.wish.train],
            "sensed_train": [each["name"] for each in table.settings.get("train", ())],
            "seed": self.wish.ingredients.seed,
            "noise_of_16_bits": self.noise, "correction": outcome.correction,
            "tight": outcome.tight, "chosen": outcome.candidates.index(best),
            "sense_data": table.data, "data": best.measured.data, "tokens": best.measured.tokens,
            "candidates": [one.to_dict() for one in outcome.candidates],
            "predicted_frontier": self._frontier(outcome),
            **({} if self.builder.exam is None else {"exam": self.builder.exam.facts}),
        }  # fmt: skip

    def _frontier(self, outcome: Outcome) -> list[dict[str, Any]]:
        """Cost against predicted loss, by the greedy allocation, which is quick."""
        units = self.units
        least = math.fsum(min(o.loss for o in unit.options) for unit in units)
        most = math.fsum(max(o.loss for o in unit.options) for unit in units)
        start = max(least, most * 1e-4)
        if most <= 0:
            return []
        points = {}
        for index in range(POINTS):
            budget = start * (most / start) ** (index / (POINTS - 1))
            problem = Problem(units=units, minimise="cost", budget=max(budget, least))
            choice = ALLOCATORS["greedy"]()(problem)
            points[choice.cost] = {
                "cost": choice.cost,
                "predicted": self.predicted(
                    choice.loss, outcome.correction, outcome.candidates
                ),
                **asdict(figures(choice.schemes, self.table)),
            }  # fmt: skip
        return list(points.values())


def _noise(builder: Builder, budget: Budget) -> float | None:
    """Raises BudgetError for a budget that 16 bits alone would break."""
    if budget.bounded == "cost":
        return None
    noise = abs(builder.noise().value)
    if budget.allowed <= noise:
        raise BudgetError(
            f"{budget}: the untouched model in 16 bits already loses {noise:.3g} against itself in "
            "float32; no plan can be told to be inside. Allow more"
        )
    return noise


def _exam(wish: Wish, keeping: Keeping, threads: int | None, progress: Progress) -> Exam | None:
    """The tasks of a budget that has some, put to the reference. Raises RecipeError for options
    of tasks where there are none."""
    if wish.budget.tasks:
        settings = replace(wish.asking, tasks=wish.budget.tasks, seed=wish.ingredients.seed)
        return Exam.open(
            wish.budget, wish.ingredients.model, settings, keeping=keeping, progress=progress,
            threads=threads,
        )  # fmt: skip
    if wish.asking != NO_TASKS:
        raise RecipeError(
            f"{wish.budget}: --limit, --shots, --chat-template and --run-code are of a budget on "
            "tasks, as 'recovery>=99% on arc_easy'; leave them out"
        )
    return None
