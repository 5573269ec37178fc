"""What a budget may look like, what it is of, and what it is measured by."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pennyweight.core import RecipeError
from pennyweight.study.planning.budget import Budget, parse_budget
from pennyweight.study.scaling.design import loss_budget


@pytest.mark.parametrize(
    ("text", "name", "limit", "bounded", "measured"),
    [
        ("kl<=0.02", "kl", 0.02, "loss", "kl_nats"),
        (" kl <= 2e-2 ", "kl", 0.02, "loss", "kl_nats"),
        ("ppl<=1%", "ppl", 1.0, "loss", "perplexity_change_percent"),
        ("ppl <= 0.5 %", "ppl", 0.5, "loss", "perplexity_change_percent"),
        ("bits<=4.5", "bits", 4.5, "cost", "kl_nats"),
        ("ratio>=0.9", "ratio", 0.9, "cost", "kl_nats"),
    ],
)
def test_budgets_that_are_understood(text, name, limit, bounded, measured):
    budget = parse_budget(text)
    assert budget == Budget(name=name, limit=limit)
    assert (budget.bounded, budget.measured) == (bounded, measured)
    assert parse_budget(str(budget)) == budget


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected one like"),
        ("loss<=1", "expected one like"),
        ("kl=0.02", "expected one like"),
        ("kl<=0.02 nats", "expected one like"),
        ("kl>=0.02", "kl is bounded by <="),
        ("ratio<=0.5", "ratio is bounded by >="),
        ("kl<=2%", "a number without a unit"),
        ("ppl<=1", "a number with a % sign"),
        ("kl<=nan", "a number without a unit"),
        ("kl<=inf", "a number without a unit"),
        ("kl<=much", "a number without a unit"),
        ("kl<=-0.1", "above 0"),
        ("ppl<=0%", "above 0"),
        ("ratio>=1.5", "at most 1"),
        ("kl<=0.1 on arc_easy", "takes no task"),
        ("recovery>=99%", "takes 'on TASK' after it"),
        ("recovery>=99% on ,", "takes 'on TASK' after it"),
        ("recovery<=99% on piqa", "recovery is bounded by >="),
        ("recovery>=0.99 on piqa", "a number with a % sign"),
        ("recovery>=100% on piqa", "less than 100 %"),
        ("recovery>=0% on piqa", "above 0"),
    ],
)
def test_budgets_that_are_not(text, message):
    with pytest.raises(RecipeError, match=message):
        parse_budget(text)


@pytest.mark.parametrize(
    ("on", "tasks"),
    [
        ("arc_easy", ("arc_easy",)),
        ("piqa, my task.jsonl", ("piqa", "my task.jsonl")),
        ("a folder/copa.jsonl.gz ", ("a folder/copa.jsonl.gz",)),
    ],
)
def test_a_recovery_is_of_tasks_and_what_may_be_lost_is_the_rest(on, tasks):
    budget = parse_budget(f" recovery >= 98.5 % on {on}")
    assert budget == Budget(name="recovery", limit=98.5, tasks=tasks)
    assert (budget.allowed, budget.bounded, budget.measured) == (1.5, "loss", "score_loss_percent")
    assert parse_budget(str(budget)) == budget


def test_laws_are_of_losses_that_sizes_share():
    with pytest.raises(RecipeError, match="expected a budget of a loss"):
        loss_budget("recovery>=99% on piqa")


def test_what_others_allow_is_their_limit():
    assert parse_budget("kl<=0.02").allowed == 0.02 and parse_budget("bits<=4.5").allowed == 4.5


def test_perplexity_in_nats():
    """One percent more perplexity is ln 1.01 nats more loss."""
    budget = parse_budget("ppl<=1%")
    assert budget.nats(1.0) == pytest.approx(math.log(1.01))
    assert budget.nats(-100.0) == -math.inf
    assert parse_budget("kl<=0.1").nats(0.1) == 0.1


@given(percent=st.floats(-99, 1e4))
def test_nats_and_back(percent):
    budget = Budget(name="ppl", limit=1.0)
    assert budget.of_nats(budget.nats(percent)) == pytest.approx(percent, rel=1e-9, abs=1e-9)
