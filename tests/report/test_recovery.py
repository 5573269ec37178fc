"""Task scores in the verdict: by hand, with and without texts, at chance, and over the budget."""

import math

import pytest

from pennyweight.evaluate.verdict import Verdict
from pennyweight.report import quality, recovery, summary
from pennyweight.report.content import Cards, Table, Text
from pennyweight.report.material import Material, Sources, gather
from tests.report.examples import eval_records, store, task_record

GOOD, BAD, OPEN = (99.2, 99.6, 100.1), (90.0, 93.0, 97.0), (95.0, 99.0, 103.0)


@pytest.fixture
def page(models, tmp_path):
    """page(records of the first model, of the second): the material of what they say."""

    def made(*records: object) -> Material:
        path = store(tmp_path / "r.sqlite", *records)  # type: ignore[arg-type]
        return gather(Sources(directories=models, records=(path,)))

    return made


def said(material: Material) -> str:
    (text,) = [part for part in summary.section(material).parts if isinstance(part, Text)]
    return text.text


def cards(material: Material):
    (found,) = [part for part in summary.section(material).parts if isinstance(part, Cards)]
    return found.cards


def test_tasks_alone_give_a_verdict(models, page):
    material = page(
        task_record(models[0], "a", "b", recovery=BAD, is_average=True),
        task_record(models[1], "a", recovery=OPEN), task_record(models[1], "b", recovery=GOOD),
        task_record(models[1], "a", "b", recovery=GOOD, is_average=True),
    )  # fmt: skip
    first, second = cards(material)
    assert [b.text for b in first.badges] == ["tasks: loses more than 1 %"]
    assert [b.text for b in second.badges] == ["tasks: lossless within noise"]
    assert second.rows == (
        ("recovery, average of 2 tasks", "99.6 %", "99.2 to 100.1"),
        ("a", "99.0 %", "95.0 to 103.0"), ("b", "99.6 %", "99.2 to 100.1"),
    )  # fmt: skip
    assert said(material).startswith(
        "Of 2 measured models 1 stays within 1 % of the reference's task scores. The smallest that "
        "does is large: it takes "
    )
    assert "99.6 % kept on average over 2 tasks, 95 % interval 99.2 to 100.1" in said(material)


def test_a_model_that_loses_on_tasks_is_not_good_whatever_its_perplexity(models, page):
    fine = (-0.1, 0.05, 0.2)
    material = page(
        *eval_records(models[1], kl=0.001, change=fine),
        task_record(models[1], "a", recovery=BAD, is_average=True),
    )
    _, card = cards(material)
    assert [b.tone for b in card.badges] == ["good", "poor"]
    assert said(material).startswith(
        "large is not shown to stay within 1 % of the reference's task scores: 93.0 % kept on a, "
        "95 % interval 90.0 to 97.0, at "
    )


def test_the_perplexity_comes_first_and_tasks_are_said_after_it(models, page):
    fine = (-0.1, 0.05, 0.2)
    texts = eval_records(models[1], kl=0.001, change=fine)
    material = page(*texts, task_record(models[1], "a", recovery=OPEN, is_average=True))
    assert "within 1 % of the reference's perplexity (+0.05 %" in said(material)
    assert said(material).endswith(
        " On a it keeps 99.0 (95.0 to 103.0) % of the reference's score: undecided at 1 %; "
        "more items would tell."
    )


def test_at_chance_there_is_no_verdict(models, page):
    guess = {"recovery": GOOD, "above_chance": False}
    material = page(
        task_record(models[1], "a", **guess),
        *eval_records(models[1], kl=0.1, change=(2.0, 3.0, 4.0)),
    )  # fmt: skip
    _, card = cards(material)
    assert [b.text for b in card.badges] == [
        "texts: loses more than 1 %", "tasks: reference at chance",
    ]  # fmt: skip
    assert card.rows == (("1 task", "none", "reference at chance"),)
    assert said(material).endswith("so they say nothing.")
    (kept,) = recovery.recoveries(material)
    assert kept.judged(50.0) is Verdict.CHANCE


def test_only_guessing_is_no_measurement(models, page):
    material = page(task_record(models[1], "a", recovery=GOOD, above_chance=False))
    assert said(material).startswith("Nothing here was measured against a reference")


@pytest.mark.parametrize(
    ("floor", "budget", "expected"),
    # Recovery 95 to 97 %: a loss of 3 to 5.
    [(0.0, 1.0, Verdict.OVER), (0.0, 4.0, Verdict.UNDECIDED), (0.0, 5.0, Verdict.WITHIN),
     (5.0, 1.0, Verdict.LOSSLESS)],
)  # fmt: skip
def test_the_page_judges_by_its_own_budget_and_the_noise_that_was_found(
    models, page, floor, budget, expected
):
    material = page(task_record(models[1], "a", recovery=(95.0, 96.0, 97.0), floor_percent=floor))
    (kept,) = recovery.recoveries(material)
    assert kept.judged(budget) is expected


def test_the_same_questions_count_once_and_other_questions_by_themselves(models, page):
    budgets = [{"judging": {"budget_percent": each}} for each in (1.0, 2.0)]
    material = page(
        *(task_record(models[1], "a", recovery=(1.0, value, 3.0), **asked)
          for value, asked in zip((2.0, 2.5), budgets, strict=True)),
        task_record(models[1], "a", limit=7),
    )  # fmt: skip
    assert [one.recovery.value for one in recovery.recoveries(material)] == [2.5, 96.0]
    (table,) = [part for part in quality.section(material).parts if isinstance(part, Table)]  # type: ignore[union-attr]
    assert table.head[-1] == "asked"
    assert [row[-1] for row in table.rows] == ["all items", "the first 7 items of each task"]


def test_the_average_over_the_most_tasks_decides(models, page):
    material = page(
        task_record(models[1], "a", "b", recovery=GOOD, is_average=True),
        task_record(models[1], "a", recovery=BAD, is_average=True),
        task_record(models[1], "c", "d", recovery=OPEN, is_average=True),
    )
    kept = recovery.recoveries(material)
    chosen = recovery.average(kept, material.models[1])
    assert chosen is not None and chosen.tasks == ("c", "d")
    assert recovery.average(kept, material.models[0]) is None


def test_more_tasks_than_a_card_holds_are_counted(models, page):
    material = page(*(task_record(models[1], f"t{number}") for number in range(9)))
    assert cards(material)[1].rows[-1] == ("more tasks", "3", "in the table below")


def test_an_unknown_recovery_is_said_to_be_unknown(models, page):
    material = page(task_record(models[1], "a", score=None, reference={"value": None}))
    (kept,) = recovery.recoveries(material)
    assert (kept.score, kept.reference) == (None, None)
    unknown = recovery.table([kept], 1.0).rows[0]
    assert unknown[2:4] == ("not known", "not known")
    assert not math.isnan(kept.recovery.value)
