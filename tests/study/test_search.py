"""The loop between predicting and measuring, on a model of a model: what is lost is a factor times
the sum, and for some choices something more."""

import math
from dataclasses import replace

import pytest

from pennyweight.allocate import ALLOCATORS
from pennyweight.allocate.base import Option, Problem, Unit
from pennyweight.core import DataError
from pennyweight.evaluate import Interval
from pennyweight.study.planning.candidate import Candidate, Figures, Measured
from pennyweight.study.planning.search import Search, cheapest

NO_FIGURES = Figures(
    size_bytes=0.0, bits_per_weight=0.0, quantization_ratio=0.0, quantization_ratio_with_scales=0.0
)
UNITS = tuple(
    Unit(name=f"u{i}", options=tuple(
        Option(scheme=f"W{bits}", loss=(1 + i) * 4.0 ** -bits, cost=float(bits))
        for bits in (2, 3, 4, 8)
    ))
    for i in range(12)
)  # fmt: skip


def picked(schemes):
    return [o for unit in UNITS for o in unit.options if o.scheme == schemes[unit.name]]


def search(limit, truth, *, units=UNITS, rounds=20, width=0.05, floor=0.0, scales=True):
    """truth: sum, schemes -> what is really lost; the interval is `width` of it to both sides, and
    `floor` more."""
    built = []

    def allocate(budget):
        return cheapest(units, budget, ALLOCATORS["exact"]())

    def build(schemes, correction):
        built.append(dict(schemes))
        summed = math.fsum(o.loss for o in picked(schemes))
        lost = truth(summed, schemes)
        loss = Interval(low=lost * (1 - width) - floor, value=lost, high=lost * (1 + width) + floor)
        return Candidate(
            schemes=dict(schemes), summed=summed, predicted=summed * correction,
            cost=math.fsum(o.cost for o in picked(schemes)), figures=NO_FIGURES,
            measured=Measured(
                loss=loss, kl_nats=loss, perplexity_change_percent=loss, file_bytes=0
            ),
            inside=loss.high <= limit,
        )  # fmt: skip

    losses = [[o.loss for o in unit.options] for unit in units]
    outcome = Search(
        limit=limit, least=math.fsum(map(min, losses)), smallest=min(map(min, losses)),
        allocate=allocate, build=build, upper=lambda c: c.measured.loss.high,
        value=lambda c: c.measured.loss.value, rounds=rounds, scales=scales,
    )()  # fmt: skip
    assert len(built) == len({tuple(sorted(b.items())) for b in built}), "none is built twice"
    return outcome


def least_cost(limit, factor, width=0.05):
    """The oracle, where the truth is a factor: allocate what is left of the budget after it."""
    budget = limit / (factor * (1 + width))
    return ALLOCATORS["exact"]()(Problem(units=UNITS, minimise="cost", budget=budget)).cost


@pytest.mark.parametrize("factor", [0.3, 1.4, 5.0])
@pytest.mark.parametrize("limit", [0.1, 1.0])
def test_a_constant_factor_is_found_and_the_cheapest_plan_with_it(limit, factor):
    outcome = search(limit, lambda summed, _: factor * summed)
    assert outcome.best is not None and outcome.best.inside
    assert outcome.best.cost == least_cost(limit, factor)
    assert outcome.correction == pytest.approx(factor)
    assert outcome.tight and len(outcome.candidates) <= 12


def test_losses_that_follow_the_sum_slowly_are_caught_up_with():
    """Proportional steps alone would creep up to the budget from outside."""
    outcome = search(0.1, lambda summed, _: 0.2 * summed**0.4, rounds=5)
    assert outcome.best is not None
    budget = (0.1 / (0.2 * 1.05)) ** (1 / 0.4)
    least = ALLOCATORS["exact"]()(Problem(units=UNITS, minimise="cost", budget=budget)).cost
    assert outcome.best.cost <= 1.05 * least


def test_the_last_round_rather_costs_more_than_finds_nothing():
    outcome = search(0.1, lambda summed, _: 0.3 * summed**0.4, rounds=3)
    assert outcome.best is not None


def test_six_rounds_come_close():
    outcome = search(0.1, lambda summed, _: 1.4 * summed, rounds=6)
    assert outcome.best is not None
    assert outcome.best.cost <= 1.02 * least_cost(0.1, 1.4)


@pytest.mark.parametrize("limit", [0.1, 1.0])
def test_an_interval_that_is_mostly_of_its_items_is_searched_by_halving(limit):
    """Nine tenths of the limit are the width that no plan can change: what is left is found, and
    in few rounds nearly."""
    truth, floor = (lambda summed, _: 0.7 * math.sqrt(summed) * limit), 0.9 * limit
    wanted = (0.1 / (0.7 * 1.05)) ** 2  # the sum at which the upper end is the limit
    best = ALLOCATORS["exact"]()(Problem(units=UNITS, minimise="cost", budget=wanted)).cost
    outcome = search(limit, truth, floor=floor, scales=False)
    assert outcome.best is not None and outcome.tight and outcome.best.cost == best
    early = search(limit, truth, floor=floor, scales=False, rounds=6)
    assert early.best is not None and early.best.cost <= 1.15 * best


def test_losses_that_do_not_add_up_still_end_inside():
    """More is lost together than alone, as where errors feed on one another."""
    outcome = search(0.1, lambda summed, _: summed + 30 * summed**2)
    assert outcome.best is not None and outcome.best.measured.loss.high <= 0.1
    assert outcome.tight


def test_out_of_reach_is_shown_by_the_best_there_is():
    outcome = search(1e-4, lambda summed, _: 10 * summed)
    least = min(c.summed for c in outcome.candidates)
    assert outcome.best is None and outcome.tight
    assert least == pytest.approx(math.fsum(min(o.loss for o in u.options) for u in UNITS))


def test_nothing_lost_at_all_ends_at_the_cheapest():
    outcome = search(0.1, lambda *_: 0.0)
    assert outcome.best is not None and outcome.best.cost == 24.0  # 12 units of 2 bits


def test_rounds_are_not_exceeded_and_it_says_that_it_is_not_sure():
    outcome = search(0.1, lambda summed, _: 5 * summed, rounds=1)
    assert len(outcome.candidates) == 1 and not outcome.tight and outcome.best is None


def test_the_prediction_of_a_later_round_is_corrected():
    first, second = search(0.1, lambda summed, _: 3 * summed, rounds=2).candidates
    assert first.predicted == first.summed
    assert second.predicted == pytest.approx(3 * second.summed)


def test_one_window_has_no_interval():
    with pytest.raises(DataError, match="give more text"):
        search(0.1, lambda *_: math.nan)


def test_a_pinned_unit_has_one_option():
    units = (replace(UNITS[0], options=UNITS[0].options[:1]), *UNITS[1:])
    outcome = search(0.5, lambda summed, _: summed, units=units)
    assert outcome.best is not None and outcome.best.schemes["u0"] == "W2"


def test_of_equal_costs_the_one_that_loses_less():
    """Both units cost as much; with a budget of 1 either may be narrow, and u0 loses less."""
    units = tuple(
        Unit(name=name, options=(Option(scheme="W2", loss=loss, cost=2.0),
                                 Option(scheme="W4", loss=0.0, cost=4.0)))
        for name, loss in (("u0", 0.5), ("u1", 0.9))
    )  # fmt: skip
    assert cheapest(units, 1.0, ALLOCATORS["exact"]()) == {"u0": "W2", "u1": "W4"}
