"""Budgets on tasks: the rule that decides, whether there are items enough, and a plan by it."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from typer.testing import CliRunner

from pennyweight.cli.main import app
from pennyweight.core import BudgetError, DataError
from pennyweight.evaluate import Settings
from pennyweight.evaluate.outcomes import TaskScores
from pennyweight.evaluate.recovery import Judging, recoveries
from pennyweight.model.text import documents
from pennyweight.model.workers import start_workers
from pennyweight.pipeline.engine import Keeping, Run
from pennyweight.pipeline.quantize import quantize
from pennyweight.pipeline.recipe import Calibrate, load_recipe
from pennyweight.pipeline.tasks import Reference, TaskSettings, evaluate_tasks
from pennyweight.records import Store
from pennyweight.report.files import FrontierFile
from pennyweight.report.frontier import _budget, unit
from pennyweight.study.bank import Ingredients
from pennyweight.study.planning.budget import Budget, parse_budget
from pennyweight.study.planning.exam import items_needed, kept, lost, require_power
from pennyweight.study.planning.planner import plan
from pennyweight.study.planning.wish import Wish, require_fresh
from tests.tiny_llama import save_tiny_llama

SCHEMES = ("W4A16", "W8A16", "W16A16")


def scores(right: int, wrong: int, task: str = "t", chance: float | None = 0.25) -> TaskScores:
    values = (1.0,) * right + (0.0,) * wrong
    return TaskScores(task=task, metric="acc", values=values, items="x", chance=chance)


def budget(limit: float) -> Budget:
    return Budget(name="recovery", limit=limit, tasks=("t",))


def posterior_low(both: int, model: int, reference: int, neither: int) -> float:
    """The oracle: 2.5 % quantile of the recovery in percent, by other draws of the same posterior
    (docs/evaluation.md: Dirichlet, three quarters of an item in each cell of disagreement)."""
    weights = [both, model + 0.75, reference + 0.75, max(neither, 1e-9)]
    shares = np.random.default_rng(7).dirichlet(weights, 200_000)
    ratio = (shares[:, 0] + shares[:, 1]) / (shares[:, 0] + shares[:, 2])
    return float(100 * np.quantile(ratio, 0.025))


@pytest.mark.parametrize(
    ("both", "model", "reference", "neither", "inside"),
    [
        (500, 0, 0, 200, True),  # every answer of the reference
        (500, 3, 3, 200, True),  # nothing is lost, and few answers change
        (500, 30, 30, 200, False),  # nothing is lost, and so many change that it might be
        (480, 0, 20, 200, False),
        (480, 25, 5, 200, True),  # gained
        (60, 0, 0, 20, False),  # nothing is lost, and the items are few
    ],
)
def test_a_candidate_is_inside_if_the_lower_end_is_at_least_the_limit(
    both, model, reference, neither, inside
):
    mine = [1.0] * both + [1.0] * model + [0.0] * reference + [0.0] * neither
    theirs = [1.0] * both + [0.0] * model + [1.0] * reference + [0.0] * neither
    a, b = (replace(scores(1, 0), values=tuple(values)) for values in (mine, theirs))
    found = kept(recoveries([a], [b]))
    assert found is not None
    assert found.low == pytest.approx(posterior_low(both, model, reference, neither), abs=0.35)
    limit = budget(98.0)
    assert (found.low >= 98.0) == inside
    assert (lost(found).high <= limit.allowed) == inside  # what the planner asks


def test_too_few_items_say_how_many_it_takes():
    with pytest.raises(BudgetError, match=r"24 items of t are too few; .* down to 8\d.*at least"):
        require_power([scores(16, 8)], budget(99.0), Judging())
    require_power([scores(16, 8)], budget(70.0), Judging())
    require_power([scores(1600, 800)], budget(99.0), Judging())


@given(share=st.floats(0.4, 1.0), limit=st.sampled_from([90.0, 97.0, 99.0]))
def test_the_items_that_are_named_are_enough_and_few_less_are_not(share, limit):
    """And their number is that of a formula: of n items with r right, the loss is that of two gamma
    variables of shape 0.75 over r, whose difference is at most 2.62 in 97.5 % of draws."""
    few = scores(max(1, round(10 * share)), 10 - max(1, round(10 * share)), chance=None)
    needed = items_needed([few], limit, Judging())
    assert needed is not None
    right = sum(few.values) / 10
    assert needed == pytest.approx(2.62 / (1 - limit / 100) / right, rel=0.2)
    assert enough(few, right, round(1.1 * needed), limit)
    assert not enough(few, right, round(0.8 * needed), limit)


def enough(few, right, items, limit):
    many = scores(round(items * right), items - round(items * right), chance=few.chance)
    found = kept(recoveries([many], [many]))
    return found is not None and found.low >= limit


def test_an_average_over_tasks_needs_fewer_of_each():
    both = [scores(40, 20, "a"), scores(40, 20, "b")]
    one = items_needed(both[:1], 99.0, Judging())
    two = items_needed(both, 99.0, Judging())
    assert one is not None and two is not None and two < 1.9 * one


def test_a_reference_that_guesses_can_lose_nothing():
    with pytest.raises(BudgetError, match=r"no better than guessing \(t: 25 % right .* 25 % by ch"):
        require_power([scores(25, 75)], budget(90.0), Judging())
    with pytest.raises(BudgetError, match="no better than guessing"):
        require_power([scores(0, 75, chance=None)], budget(90.0), Judging())
    require_power([scores(90, 10, "a"), scores(25, 75, "b")], budget(90.0), Judging())


def test_scores_that_are_not_right_or_wrong_promise_no_number():
    part = replace(scores(1, 0), values=(0.5, 0.25, 0.75), chance=None)
    assert items_needed([part], 99.0, Judging()) is None


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Weights large enough that rounding them changes answers."""
    return save_tiny_llama(tmp_path_factory.mktemp("model"), noise=0.3)


@pytest.fixture(scope="module")
def task(model, tmp_path_factory):
    """Pairs of which the reference prefers the one that is called good: it has all right."""
    words = [f"{chr(97 + i % 26)}{chr(97 + i * 7 % 26)}{i}" for i in range(100)]
    rows = [{"sentence_good": word, "sentence_bad": word[::-1] + "x"} for word in words]
    path = tmp_path_factory.mktemp("task") / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    asked = evaluate_tasks(Run(model=model), TaskSettings(tasks=(str(path),))).scores[0].values
    named = [
        row if right else dict(zip(row, reversed(row.values()), strict=True))
        for row, right in zip(rows, asked, strict=True)
    ]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, named)))
    return path


@pytest.fixture(scope="module")
def wish(model, task, token_file, tmp_path_factory):
    fresh = tmp_path_factory.mktemp("fresh") / "fresh.json"
    fresh.write_text(json.dumps([[(7 * i + j * j) % 128 for j in range(40)] for i in range(12)]))
    calibrate = Calibrate(data=(str(token_file),), samples=8, tokens=32)
    return Wish(
        ingredients=Ingredients(model=str(model), quantizer="rtn", calibrate=calibrate),
        budget=parse_budget(f"recovery>=90% on {task}"), schemes=SCHEMES, rounds=4,
        sense_data=(str(token_file),), data=(str(fresh),), estimator="fisher",
        settings=Settings(context=32, resamples=100),
    )  # fmt: skip


@pytest.fixture(scope="module")
def planned(wish, tmp_path_factory):
    folder = tmp_path_factory.mktemp("planned")
    return plan(wish, folder / "plan.toml", work=folder / "work", threads=1)


def test_a_plan_is_inside_on_the_task_and_says_so(planned, wish, task):
    chosen, facts = planned.chosen, planned.facts
    kept_percent = chosen.measured.recovery_percent
    assert chosen.inside and kept_percent.low >= 90
    assert chosen.measured.loss == lost(kept_percent)
    assert chosen.measured.kl_nats.value > 0, "measured on text as well"
    assert chosen.figures.bits_per_weight < 16
    assert facts["budget"]["allowed"] == 10 and facts["exam"]["items"] == 100
    assert facts["exam"]["tasks"] == {"pairs": 1.0}
    frontier = sorted(facts["predicted_frontier"], key=lambda point: point["cost"])
    losses = [point["predicted"] for point in frontier]
    assert losses == sorted(losses, reverse=True), "more bytes never predict a larger loss"
    text = planned.path.read_text()
    assert f"recovery>=90% on {task}" in text and "# Recovery " in text
    assert load_recipe(planned.path) == planned.recipe


def test_the_report_draws_what_may_be_lost(planned):
    file = planned.path.parent / "plan.frontier.json"
    found = TypeAdapter(FrontierFile).validate_python(json.loads(file.read_text()))
    assert unit(found) == "% of the reference's score"
    assert [line["y0"] for line in _budget(found)] == [10.0]


def test_candidates_are_as_eval_tasks_has_them(planned, wish, task, model, tmp_path):
    quantize(load_recipe(planned.path), tmp_path / "out", threads=1)
    report = evaluate_tasks(
        Run(model=tmp_path / "out"), TaskSettings(tasks=(str(task),)),
        against=Reference(model=model), judging=Judging(budget_percent=10.0),
    )  # fmt: skip
    (found,) = report.comparison.tasks
    assert found.recovery_percent == planned.chosen.measured.recovery_percent


def test_records_hold_every_candidate_and_nothing_is_built_again(planned, wish, monkeypatch):
    store = Store.open(planned.path.parent / "work" / "records.sqlite")
    records = store.find(study="plan", metric="recovery_percent")
    built = [c for c in planned.outcome.candidates if set(c.schemes.values()) != {"W16A16"}]
    assert len(records) == len(built)
    assert all(r.lower <= r.value <= r.upper and r.subject["tasks"] == ["pairs"] for r in records)
    assert len(store.find(study="plan", metric="kl_nats")) == len(built)
    monkeypatch.setattr("pennyweight.study.planning.build.quantize", None)  # calling it would fail
    again = plan(
        wish, planned.path.with_name("again.toml"), work=planned.path.parent / "work", threads=2
    )
    assert again.chosen == planned.chosen
    assert again.path.read_text() == planned.path.read_text()


def test_the_number_of_threads_changes_no_bit_of_an_answer(model, task, tmp_path):
    def asked(threads):
        keeping = Keeping(samples=tmp_path / f"{threads}.jsonl")
        with start_workers(threads) as workers:
            run = Run(model=model, mapper=workers)
            evaluate_tasks(run, TaskSettings(tasks=(str(task),), limit=20), keeping=keeping)
        return keeping.samples.read_text()

    one = asked(1)
    assert "answered" in one and asked(3) == one


def test_the_task_is_no_text_that_units_were_measured_on(planned, wish, task):
    seen = replace(planned.table, settings={"data": [str(task)]})
    with pytest.raises(DataError, match="the sensitivities were measured on it"):
        require_fresh(seen, wish, "another digest")


def test_a_task_of_too_few_items_is_refused_before_anything_is_measured(wish, tmp_path):
    asking = TaskSettings(tasks=(), limit=12)
    few = replace(wish, asking=asking, budget=replace(wish.budget, limit=99.0))
    with pytest.raises(BudgetError, match=r"12 items of pairs are too few; .* at least 2\d0 items"):
        plan(few, tmp_path / "plan.toml", threads=1)
    assert not (tmp_path / "plan.toml.work" / "sense.json").exists()


def test_from_the_command_line(planned, wish, task, model, token_file, tmp_path):
    arguments = [
        "plan", str(model), "--budget", f"recovery>=90% on {task}", "--schemes", ",".join(SCHEMES),
        "--sense", str(planned.path.parent / "work" / "sense.json"), "--data", wish.data[0],
        "--calibrate", str(token_file), "--quantizer", "rtn", "--rounds", "2", "--threads", "1",
        "--work", str(planned.path.parent / "work"), "-q", "-o", str(tmp_path / "plan.toml"),
    ]  # fmt: skip
    found = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert found.exit_code == 0
    assert "% of the reference's score, measured on 100 items of pairs" in found.stdout
    assert "every answer of the reference would show" in found.stdout


RECIPE = """
model = "pylm"
budget = "recovery>=90% on {task}"
engine = "vllm"
calibrate = {{ samples = 8, tokens = 128 }}

[plan]
quantizer = "rtn"
schemes = ["W4A16_g128", "W8A16_g128"]
estimator = "fisher"
max_tokens = 2048
rounds = 3
"""


@pytest.mark.slow
def test_quantize_for_a_budget_on_a_task_of_the_bundled_model(tmp_path):
    """Lines of held-out code against the same with their words in another order."""
    texts = [document.text for document in documents("stdlib-heldout")]
    lines = [line.strip() for text in texts for line in text.split("\n") if len(line.split()) > 4]
    rows = [
        {"sentence_good": line, "sentence_bad": " ".join(sorted(line.split()))}
        for line in lines[::40][:200]
        if line.split() != sorted(line.split())
    ]
    task = tmp_path / "order.jsonl"
    task.write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "recipe.toml").write_text(RECIPE.format(task=task))
    arguments = ["quantize", "--recipe", str(tmp_path / "recipe.toml"), "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*arguments, "-q"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "# Recovery " in (tmp_path / "out.plan" / "plan.toml").read_text()
    found = evaluate_tasks(
        Run(model=tmp_path / "out"), TaskSettings(tasks=(str(task),)),
        against=Reference(model="pylm"),
    ).comparison  # fmt: skip
    assert found is not None and found.tasks[0].recovery_percent.low >= 90
    assert found.tasks[0].items == len(rows) > 100
