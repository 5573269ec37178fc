import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pennyweight.core import DataError
from pennyweight.evaluate.intervals import Interval
from pennyweight.evaluate.outcomes import TaskScores
from pennyweight.evaluate.recovery import Judging, mcnemar, recoveries, score_interval
from pennyweight.evaluate.verdict import Verdict, verdict

FAST = Judging(resamples=400)


def scores(*values, task="toy", chance=0.0, metric="acc", items="x"):
    values = tuple(float(value) for value in values)
    return TaskScores(task=task, metric=metric, values=values, items=items, chance=chance)


def pairs(both, only_model, only_reference, neither, **about):
    """The scores of a model and its reference with so many items of each kind."""
    model = [1] * both + [1] * only_model + [0] * only_reference + [0] * neither
    reference = [1] * both + [0] * only_model + [1] * only_reference + [0] * neither
    return scores(*model, **about), scores(*reference, **about)


def test_recovery_is_the_ratio_of_the_scores():
    model, reference = pairs(60, 5, 15, 20)
    (found,) = recoveries([model], [reference]).tasks
    assert (found.score.value, found.reference.value) == (65, 75)
    assert found.recovery_percent.value == pytest.approx(100 * 65 / 75)
    assert (found.only_model, found.only_reference) == (5, 15)
    assert found.recovery_percent.low < found.recovery_percent.value < found.recovery_percent.high


@pytest.mark.parametrize(("a", "b"), [(0, 0), (1, 0), (5, 15), (40, 60)])
def test_mcnemar_is_the_binomial_tail(a, b):
    tail = sum(math.comb(a + b, k) for k in range(min(a, b) + 1)) / 2 ** (a + b)
    assert mcnemar(a, b) == pytest.approx(min(1, 2 * tail) if a != b else 1)


def test_scores_that_are_not_right_or_wrong_are_resampled():
    model, reference = scores(0.5, 0.25, 0.75, 0.9), scores(0.6, 0.3, 0.7, 0.9)
    (found,) = recoveries([model], [reference]).tasks
    assert found.recovery_percent.value == pytest.approx(100 * 2.4 / 2.5)
    assert found.p_value is None
    assert found.recovery_percent.low < 96 < found.recovery_percent.high


def test_the_same_answers_leave_the_doubt_that_few_items_leave():
    few, many = (recoveries([m], [r]).tasks[0] for m, r in (pairs(8, 0, 0, 2), pairs(800, 0, 0, 2)))
    assert few.recovery_percent.value == many.recovery_percent.value == 100
    assert few.recovery_percent.low < 90 < 99 < many.recovery_percent.low < 100
    assert (few.verdict, many.verdict) == (Verdict.UNDECIDED, Verdict.LOSSLESS)


def test_wilson_interval_of_a_score():
    # Wilson 1927 for 3 of 10 at 95 %: 0.1078 to 0.6032.
    found = score_interval(scores(*[1] * 3 + [0] * 7))
    assert (found.low, found.high) == pytest.approx((10.78, 60.32), abs=0.01)


def test_a_reference_at_chance_has_no_verdict_and_no_part_in_the_average():
    guessing = pairs(26, 0, 0, 74, task="guessed", chance=0.25)
    knowing = pairs(90, 2, 3, 5, task="known", chance=0.25)
    found = recoveries([guessing[0], knowing[0]], [guessing[1], knowing[1]])
    assert found.tasks[0].verdict is Verdict.CHANCE
    assert (found.average.tasks, found.average.left_out) == (("known",), ("guessed",))
    assert found.average.recovery_percent == found.tasks[1].recovery_percent
    kept = recoveries(
        [guessing[0], knowing[0]], [guessing[1], knowing[1]], judging=Judging(keep_chance=True)
    )
    assert kept.average.tasks == ("guessed", "known")
    assert kept.average.recovery_percent.value == pytest.approx(100 * (26 + 92) / (26 + 93))


def test_all_at_chance_have_no_average():
    model, reference = pairs(0, 0, 0, 50)
    found = recoveries([model], [reference])
    assert found.average is None
    assert math.isnan(found.tasks[0].recovery_percent.value)


def test_the_noise_floor_is_what_the_reference_loses_against_itself():
    model, reference = pairs(80, 0, 4, 16)
    again, _ = pairs(80, 0, 4, 16)
    (found,) = recoveries([model], [reference], again=[again]).tasks
    assert found.floor_percent == pytest.approx(100 * 4 / 84)
    assert recoveries([model], [reference]).tasks[0].floor_percent == 0


def test_draws_of_a_task_do_not_depend_on_the_others_or_the_order():
    a, b = pairs(60, 5, 15, 20, task="a"), pairs(40, 5, 1, 20, task="b")
    alone = recoveries([a[0]], [a[1]]).tasks[0]
    beside = recoveries([b[0], a[0]], [a[1], b[1]]).tasks[1]
    assert alone == beside
    assert recoveries([a[0]], [a[1]], judging=Judging(seed=1)).tasks[0] != alone


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (scores(1, 0, task="b"), "the reference was not asked"),
        (scores(1, 0, items="y"), "asked different things"),
        (scores(1, 0, 1), "asked different things"),
        (scores(1, 0, metric="acc_norm"), "asked different things"),
    ],
)
def test_what_cannot_be_paired_is_an_error(other, message):
    with pytest.raises(DataError, match=message):
        recoveries([scores(1, 0)], [other])


def interval(low, high):
    return Interval(low=float(low), value=(low + high) / 2, high=float(high))


@pytest.mark.parametrize(
    ("recovery", "budget", "floor", "expected"),
    [
        (interval(99.5, 100.2), 1, 0, Verdict.LOSSLESS),
        (interval(100.5, 103), 1, 0, Verdict.LOSSLESS),  # a gain
        (interval(99.2, 99.9), 1, 0, Verdict.WITHIN),
        (interval(99.2, 99.9), 1, 0.2, Verdict.LOSSLESS),
        (interval(97, 98), 1, 0, Verdict.OVER),
        (interval(97, 98), 3, 0, Verdict.WITHIN),
        (interval(98, 100.5), 1, 0, Verdict.UNDECIDED),
        (interval(97, 99.5), 1, 0, Verdict.UNDECIDED),
        (interval(97.5, 98), 1, 3, Verdict.LOSSLESS),  # nobody can ask for less than noise
        (interval(math.nan, math.nan), 1, 0, Verdict.UNDECIDED),
    ],
)
def test_verdicts(recovery, budget, floor, expected):
    found = verdict(recovery, budget_percent=float(budget), floor_percent=float(floor))
    assert found is expected


def test_a_budget_is_a_number_from_0():
    with pytest.raises(DataError, match="budget of -1"):
        verdict(interval(99, 101), budget_percent=-1.0)


@given(st.floats(0, 200), st.floats(0, 200), st.floats(0, 20), st.floats(0, 20), st.floats(0, 5))
def test_a_larger_budget_is_never_harder(low, high, budget, more, floor):
    ranks = [Verdict.OVER, Verdict.UNDECIDED, Verdict.WITHIN, Verdict.LOSSLESS]
    found = interval(min(low, high), max(low, high))
    small, large = (
        verdict(found, budget_percent=each, floor_percent=floor) for each in (budget, budget + more)
    )
    assert ranks.index(large) >= ranks.index(small)


def trials(items, accuracy, differing, tilt, count):
    """Recoveries of `count` pairs of models whose true recovery is known, in percent.

    `differing` of the answers differ; the share (1 + tilt) / 2 of those is right in the reference.
    """
    lost, won = differing * (1 + tilt) / 2, differing * (1 - tilt) / 2
    both = accuracy - lost
    generator = np.random.default_rng(0)
    cells = generator.multinomial(items, [both, won, lost, 1 - both - won - lost], size=count)
    truth = 100 * (both + won) / accuracy
    found = []
    for number, each in enumerate(cells.tolist()):
        model, reference = pairs(*each)
        judging = Judging(seed=number, resamples=500)
        found.append(recoveries([model], [reference], judging=judging).tasks[0])
    return truth, found


def coverage(truth, found):
    inside = [f.recovery_percent.low <= truth <= f.recovery_percent.high for f in found]
    return sum(inside) / len(inside)


@pytest.mark.parametrize(
    ("items", "accuracy", "differing", "tilt"),
    [(100, 0.5, 0.1, 0.3), (200, 0.8, 0.1, 0.0), (600, 0.5, 0.05, 0.3)],
)
def test_intervals_hold_the_truth_in_95_of_100_trials(items, accuracy, differing, tilt):
    # Of 500 trials at 95 % the standard deviation is 1.0 %.
    assert 0.93 <= coverage(*trials(items, accuracy, differing, tilt, 500)) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("items", [50, 100, 200, 1000])
@pytest.mark.parametrize("differing", [0.01, 0.03, 0.1, 0.2])
@pytest.mark.parametrize("tilt", [0.0, 0.3])
def test_intervals_are_never_too_narrow_for_few_differences(items, differing, tilt):
    found = coverage(*trials(items, 0.5, differing, tilt, 1500))
    assert found >= 0.93
    assert items * differing < 10 or found <= 0.97


def test_verdict_claims_a_loss_in_at_most_5_of_100_trials_without_one():
    for items, differing in ((100, 0.05), (400, 0.03)):
        _, found = trials(items, 0.6, differing, 0.0, 300)
        wrong = sum(each.verdict in (Verdict.WITHIN, Verdict.OVER) for each in found)
        assert wrong / len(found) <= 0.05


def test_the_average_covers_too():
    generator = np.random.default_rng(1)
    inside, count = 0, 200
    for number in range(count):
        models, references = [], []
        for task, share in (("a", 0.1), ("b", 0.05), ("c", 0.2)):
            lost, won = 0.65 * share, 0.35 * share
            both = 0.6 - lost
            cells = generator.multinomial(100, [both, won, lost, 1 - both - won - lost])
            model, reference = pairs(*cells.tolist(), task=task)
            models.append(model)
            references.append(reference)
        judging = Judging(seed=number, resamples=600)
        average = recoveries(models, references, judging=judging).average.recovery_percent
        truth = 100 * (0.6 - 0.3 * (0.1 + 0.05 + 0.2) / 3) / 0.6
        inside += average.low <= truth <= average.high
    assert stats.binomtest(inside, count, 0.95).pvalue > 0.01
