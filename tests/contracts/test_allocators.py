"""What every registered allocator promises. A new file in allocate/ is tested here unasked."""

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pennyweight.allocate import ALLOCATORS
from pennyweight.allocate.base import Option, Problem, Unit
from pennyweight.allocate.tpe import TPE
from pennyweight.core import BudgetError, NumericalError, RecipeError, UnsupportedError

QUICK = {"random": {"trials": 20}, "tpe": {"trials": 15}}
MEASURED = ("random", "tpe")
number = st.floats(0.001, 100).map(lambda x: round(x, 3))


# Plain numbers: beartype, which checks our classes, draws from `random`, and strategies may not.
units_of_numbers = st.lists(
    st.lists(st.tuples(number, number), min_size=1, max_size=4), min_size=1, max_size=4
)
problems = st.tuples(units_of_numbers, st.sampled_from(["cost", "loss"]), st.floats(0, 1.1))


def problem_of(drawn):
    """Units of options (loss, cost), and a budget that at least the least sum meets."""
    numbers, minimise, share = drawn
    units = tuple(
        Unit(
            name=f"layers.{index}",
            options=tuple(
                Option(scheme=f"S{place}", loss=loss, cost=cost)
                for place, (loss, cost) in enumerate(options)
            ),
        )
        for index, options in enumerate(numbers)
    )
    problem = Problem(units=units, minimise=minimise, budget=0.0)
    low, high = ends(problem)
    return replace(problem, budget=low + share * (high - low))


def ends(problem):
    """The least and the most that a choice takes of the budget."""
    weights = [[problem.weight(o) for o in unit.options] for unit in problem.units]
    return math.fsum(map(min, weights)), math.fsum(map(max, weights))


def brute_force(problem):
    """The oracle: every choice there is."""
    found = math.inf
    for picked in itertools.product(*(unit.options for unit in problem.units)):
        if problem.fits(math.fsum(map(problem.weight, picked))):
            found = min(found, math.fsum(map(problem.objective, picked)))
    return found


@pytest.fixture(params=list(ALLOCATORS))
def name(request):
    return request.param


each = pytest.mark.parametrize("named", list(ALLOCATORS))  # hypothesis wants no fixture


def make(name):
    return ALLOCATORS[name](**QUICK.get(name, {}))


def example(minimise="cost", budget=3.0):
    """Two units: 4 bits cost 1 and lose 2, 8 bits cost 2 and lose 0.5."""
    options = (
        Option(scheme="W4", loss=2.0, cost=1.0),
        Option(scheme="W8", loss=0.5, cost=2.0),
    )
    units = (Unit(name="q", options=options), Unit(name="down", options=options))
    return Problem(units=units, minimise=minimise, budget=budget)


@each
@given(drawn=problems)
def test_within_the_budget_and_what_it_says_is_what_it_chose(named, drawn):
    problem = problem_of(drawn)
    found = make(named)(problem)
    by_name = {u.name: {o.scheme: o for o in u.options} for u in problem.units}
    picked = [by_name[unit][scheme] for unit, scheme in found.schemes.items()]
    assert list(found.schemes) == [unit.name for unit in problem.units]
    assert found.loss == math.fsum(o.loss for o in picked)
    assert found.cost == math.fsum(o.cost for o in picked)
    assert problem.fits(getattr(found, problem.bounded))
    assert getattr(found, problem.minimise) >= brute_force(problem) * (1 - 1e-9)


@each
@given(drawn=problems)
def test_same_seed_same_answer(named, drawn):
    problem = problem_of(drawn)
    assert make(named)(problem, 3) == make(named)(problem, 3)


@given(drawn=problems)
def test_exact_is_as_good_as_trying_everything(drawn):
    problem = problem_of(drawn)
    found = make("exact")(problem)
    assert getattr(found, problem.minimise) == pytest.approx(brute_force(problem), rel=1e-7)
    assert found.gap is not None and found.gap < 1e-6


@given(drawn=problems, more=st.floats(1, 2))
def test_a_larger_budget_is_never_worse(drawn, more):
    problem = problem_of(drawn)
    small = make("exact")(problem)
    large = make("exact")(replace(problem, budget=problem.budget * more))
    objective = problem.minimise
    assert getattr(large, objective) <= getattr(small, objective) * (1 + 1e-9)


def test_a_problem_worked_by_hand(name):
    # Loss at most 3: one unit in 8 bits (0.5 + 2 = 2.5), which costs 3. Cost at most 3: the same.
    cheapest = make(name)(example("cost"))
    assert (cheapest.cost, cheapest.loss) == (3.0, 2.5)
    best = make(name)(example("loss"))
    assert (best.cost, best.loss) == (3.0, 2.5)


def test_a_budget_out_of_reach_says_what_can_be_reached_and_who_is_in_the_way(name):
    problem = example(budget=0.9)
    loud = replace(problem.units[1], options=(Option(scheme="W4", loss=2.0, cost=1.0),))
    with pytest.raises(BudgetError, match=r"least is 2\.5, most of it from down \(2\), q \(0\.5\)"):
        make(name)(replace(problem, units=(problem.units[0], loud)))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("what", ["loss", "cost"])
def test_a_number_that_is_none_is_refused_by_name(name, what, value):
    problem = example()
    broken = replace(problem.units[1].options[0], **{what: value})
    units = (problem.units[0], replace(problem.units[1], options=(broken,)))
    with pytest.raises(NumericalError, match=f"down: the {what} of W4 is {value}"):
        make(name)(replace(problem, units=units))


def test_what_means_nothing_is_refused(name):
    problem = example()
    for units, message in [
        ((), "no units"),
        ((replace(problem.units[0], options=()),), "q: has no option"),
        ((problem.units[0], problem.units[0]), "two units have one name"),
    ]:
        with pytest.raises(RecipeError, match=message):
            make(name)(replace(problem, units=units))
    with pytest.raises(NumericalError, match="budget is nan"):
        make(name)(replace(problem, budget=math.nan))


@pytest.mark.parametrize("minimise", ["cost", "loss"])
def test_a_measured_loss_takes_the_place_of_the_sum_or_is_refused(name, minimise):
    # In truth the first unit loses nothing, and 8 bits help the second alone.
    measure = lambda schemes: 0.5 if schemes["down"] == "W8" else 2.0
    problem = replace(example(minimise, budget=1.0 if minimise == "cost" else 3.0), measure=measure)
    if name not in MEASURED:
        with pytest.raises(RecipeError, match="cannot use a measured loss"):
            make(name)(problem)
        return
    found = make(name)(problem)
    assert found.loss == 0.5 and found.schemes["down"] == "W8"
    assert found.cost <= (3.0 if minimise == "loss" else 4.0)
    assert found.trials and min(found.trials) == getattr(found, minimise)


def test_it_says_where_it_comes_from(name):
    assert ALLOCATORS[name].source and ALLOCATORS[name].__doc__


@given(drawn=problems)
def test_random_uses_up_the_budget(drawn):
    """As the paper's trials do: with the rest of the budget no unit could have been better off."""
    problem = problem_of((drawn[0], "loss", drawn[2]))
    found = ALLOCATORS["random"](trials=1)(problem)
    left = problem.budget - found.cost
    for unit in problem.units:
        (mine,) = (o for o in unit.options if o.scheme == found.schemes[unit.name])
        dearer = [o.cost - mine.cost for o in unit.options if o.cost > mine.cost]
        assert all(more > left - 1e-9 * problem.budget for more in dearer)


def test_the_quantization_ratio_is_a_cost_like_any_other():
    """Cost: parameters in high precision. At Q_r of at least 0.75 the small unit may stay high."""
    sizes = {"small": 25.0, "large": 75.0}
    units = tuple(
        Unit(name=name, options=(Option(scheme="W4", loss=1.0, cost=0.0),
                                 Option(scheme="W16A16", loss=0.0, cost=size)))
        for name, size in sizes.items()
    )  # fmt: skip
    problem = Problem(units=units, minimise="loss", budget=(1 - 0.75) * 100)
    assert make("exact")(problem).schemes == {"small": "W16A16", "large": "W4"}


def test_without_optuna_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(UnsupportedError, match=r"pennyweight\[search\]"):
        TPE()(example())


def test_nothing_of_the_solver_reaches_standard_output(capfd):
    make("exact")(example())
    assert capfd.readouterr().out == ""
