"""Dispersion and paired comparison of a study, on numbers that are worked out by hand."""

import itertools
import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pennyweight.study.calibration.design import Cell
from pennyweight.study.calibration.spread import (
    differences,
    least_p,
    sign_flip_p,
    spreads,
    summarize,
)


def table(sets=("a", "b"), samples=(8,), seeds=range(6), value=lambda cell: 0.0):
    cells = [
        Cell(method="m", set=s, samples=n, seed=k)
        for k, n, s in itertools.product(seeds, samples, sets)
    ]
    return {cell: float(value(cell)) for cell in cells}


def test_sign_flips_by_hand():
    # +-1 +-2 +-3: of 8 sums, 6 and -6 are as far out as 6; 6, -6, 4, -4 as far as 4.
    assert sign_flip_p([1.0, 2.0, 3.0]) == 2 / 8
    assert sign_flip_p([-1.0, 2.0, 3.0]) == 4 / 8
    assert sign_flip_p([1.0, 1.0, 1.0, 1.0, 1.0, 1.0]) == least_p(6) == 2 / 64
    assert sign_flip_p([0.0, 0.0, 0.0]) == 1


def test_many_pairs_are_sampled_and_agree_with_the_normal_limit():
    x = torch.randn(40, generator=torch.Generator().manual_seed(3)).double() + 0.2
    z = (x.sum().abs() / x.square().sum().sqrt()).item()
    assert sign_flip_p(x.tolist()) == pytest.approx(math.erfc(z / math.sqrt(2)), abs=0.02)
    assert sign_flip_p(x.tolist()) == sign_flip_p(x.tolist())


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=9), st.floats(0.1, 10))
def test_p_depends_on_neither_scale_nor_sign_nor_order(pairs, factor):
    p = sign_flip_p(pairs)
    assert least_p(len(pairs)) <= p <= 1 or all(x == 0 for x in pairs)
    assert sign_flip_p([-x for x in pairs]) == p
    assert sign_flip_p([2.0 * x for x in pairs]) == p
    assert sign_flip_p(pairs[::-1]) == pytest.approx(p)


def test_under_no_difference_it_is_called_as_often_as_the_level_says():
    generator, called = torch.Generator().manual_seed(0), 0
    for _ in range(400):
        called += sign_flip_p(torch.randn(6, generator=generator).tolist()) <= 0.05
    # Exact level 2/64 = 3.1 %: 12.5 of 400, standard deviation 3.5.
    assert 3 <= called <= 23


def test_summary_separates_the_seed_from_the_sample_count():
    values = table(samples=(8, 32), value=lambda c: c.samples + c.seed + 100 * (c.set == "b"))
    row = summarize(values)[1]
    assert (row.set, row.mean, row.lowest, row.highest) == ("b", 122.5, 108, 137)
    assert row.deviation == pytest.approx(statistics.stdev(range(6)))  # not the 24 between counts
    by_axis = {row.axis: row for row in spreads(values)}
    assert (by_axis["set"].range, by_axis["samples"].range, by_axis["seed"].range) == (100, 24, 5)
    assert (by_axis["set"].lowest_at, by_axis["set"].highest_at) == ("a", "b")
    assert by_axis["set"].deviation == pytest.approx(100 / math.sqrt(2))


def test_differences_are_paired_by_seed_and_average_over_sample_counts():
    # The seed moves every set by tens; the difference of 1 or 3 stands out only in pairs.
    values = table(
        samples=(8, 32), value=lambda c: 10 * c.seed + (c.set == "b") * (1 if c.samples == 8 else 3)
    )
    (found,) = differences(values)
    assert (found.set, found.reference, found.mean, found.seeds) == ("b", "a", 2, 6)
    assert found.p == 2 / 64 and found.verdict == "larger than the seed's"


def test_verdicts():
    noise = {0: 1.0, 1: -1.2, 2: 0.3, 3: -0.4, 4: 0.9, 5: -0.5}
    (found,) = differences(table(value=lambda c: (c.set == "b") * noise[c.seed]))
    assert found.verdict == "within the seed's"
    (found,) = differences(table(seeds=range(3), value=lambda c: c.set == "b"))
    assert found.verdict == "cannot be told from 3 seeds"
    (found,) = differences(table())
    assert found.verdict == "none: the method does not look at the data"
    assert differences(table(sets=("a",))) == []


def test_many_comparisons_raise_the_bar():
    """One set in eight differs, by as much as six seeds can show: that may be luck."""
    names = ("a", *"bcdefgh")
    luck = torch.randn(6, 8, generator=torch.Generator().manual_seed(1)).tolist()
    values = table(
        sets=names,
        value=lambda c: 9 if c.set == "b" else luck[c.seed][names.index(c.set)] * (c.set != "a"),
    )
    first = differences(values)[0]
    assert first.p == 2 / 64 and first.adjusted_p > 0.05
    assert first.verdict == "larger, were it the only one"


def test_one_seed_has_no_deviation():
    assert math.isnan(summarize(table(seeds=[0]))[0].deviation)
