"""Observed sums: what they are, and that shards of data add up."""

import functools
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pennyweight.core import NumericalError, Stats
from pennyweight.model.workers import start_workers
from pennyweight.observe import collect
from pennyweight.observe.collect import observe

CHANNELS = ("absmax", "least_absmax", "abs_sum", "square_sum")
ALL = frozenset({"gram", *CHANNELS})


def inputs(tokens: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("width", [1, 5, 64, 100])
@pytest.mark.parametrize("block", [1, 32, 1024])
def test_gram_is_the_sum_of_outer_products(width, block, monkeypatch):
    monkeypatch.setattr(collect, "GRAM_ROWS", block)
    x = inputs(200, width)
    with start_workers(2) as workers:
        found = observe([x], frozenset({"gram"}), workers).gram
    expected = x.double().T @ x.double()
    # float32 sums of 200 products of about 1: at worst 200 roundings of a partial sum below 300
    assert (found - expected).abs().max() < 200 * 300 * torch.finfo(torch.float32).eps
    assert torch.equal(found, found.T)


@given(
    first=st.integers(1, 40), second=st.integers(1, 40), width=st.integers(1, 20),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_two_halves_merged_are_the_whole(first, second, width, seed):
    a, b = inputs(first, width, seed), inputs(second, width, seed + 1)
    with start_workers(1) as workers:
        parts = [observe([part], ALL, workers) for part in (a, b)]
        whole = observe([a, b], ALL, workers)
    for merged in (parts[0].merge(parts[1]), parts[1].merge(parts[0])):
        assert merged.tokens == whole.tokens == first + second
        assert torch.equal(merged.absmax, whole.absmax)
        assert torch.equal(merged.least_absmax, whole.least_absmax)
        for name in ("gram", "abs_sum", "square_sum"):
            # up to 80 float32 additions, each off by 6e-8 of a sum of sizes of at most about 100
            assert torch.allclose(getattr(merged, name), getattr(whole, name), atol=1e-3, rtol=0)


@given(sizes=st.lists(st.integers(0, 40), min_size=2, max_size=6), width=st.integers(1, 20))
def test_parts_collected_elsewhere_are_the_same_bit_for_bit(sizes, width):
    parts = [[inputs(size, width, seed), inputs(3, width, -seed)] for seed, size in
             enumerate(sizes, 1)]  # fmt: skip
    with start_workers(1) as workers:
        collector = collect.Collector(ALL, workers)
        for part in parts:
            collector.add(part)
        here = collector.stats()
        sent = [pickle.loads(pickle.dumps(observe(part, ALL, workers))) for part in parts]
    there = functools.reduce(Stats.merge, sent)
    assert there.tokens == here.tokens
    assert all(torch.equal(there.require(name), here.require(name)) for name in ALL)


@pytest.mark.parametrize("together", [1, 3])
def test_what_is_said_of_each_channel(together):
    x = [inputs(tokens, 6, seed) for seed, tokens in enumerate((5, 9, 0, 1))]
    with start_workers(2) as workers:
        collector = collect.Collector(ALL, workers)
        for start in range(0, len(x), together):
            collector.add(x[start : start + together])
        found = collector.stats()
    seen = [part.double() for part in x if len(part)]
    whole = torch.cat(seen)
    peaks = torch.stack([part.abs().amax(0) for part in seen])
    close = lambda a, b: torch.allclose(a.double(), b, rtol=16 * 6e-8)  # 15 roundings of sizes
    assert torch.equal(found.absmax.double(), peaks.amax(0))
    assert torch.equal(found.least_absmax.double(), peaks.amin(0))
    assert close(found.abs_sum, whole.abs().sum(0))
    assert close(found.square_sum, whole.square().sum(0))
    assert found.tokens == 15


def test_stats_of_nothing_add_nothing():
    with start_workers(1) as workers:
        some = observe([inputs(9, 4)], ALL, workers)
        assert observe([], ALL, workers).tokens == 0
    for merged in (Stats().merge(some), some.merge(Stats())):
        assert merged.tokens == 9 and torch.equal(merged.gram, some.gram)


def test_only_what_is_needed_is_collected():
    with start_workers(1) as workers:
        assert observe([inputs(9, 4)], frozenset(), workers).gram is None
        for name in CHANNELS:
            only = observe([inputs(9, 4)], frozenset({name}), workers)
            given = {one for one in ALL if getattr(only, one) is not None}
            assert given == {name}


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_threads_change_no_bit(threads):
    x = [inputs(300, 2100, seed) for seed in range(2)]
    with start_workers(1) as workers:
        expected = observe(x, ALL, workers)
    with start_workers(threads) as workers:
        found = observe(x, ALL, workers)
    for name in ALL:
        assert torch.equal(getattr(found, name), getattr(expected, name))


def test_half_precision_is_summed_in_float32():
    x = torch.full((300, 2), 100.0, dtype=torch.float16)  # the sum is beyond float16
    with start_workers(1) as workers:
        assert observe([x], ALL, workers).gram.tolist() == [[3e6, 3e6], [3e6, 3e6]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_is_refused_with_its_channel(bad):
    x = inputs(9, 4)
    x[5, 2] = bad
    with (
        start_workers(1) as workers,
        pytest.raises(NumericalError, match=r"NaN or Inf \(channel 2\)"),
    ):
        observe([x], ALL, workers)


def test_a_derived_value_is_computed_once():
    stats, calls = Stats(), []
    for _ in range(3):
        assert stats.derive("key", lambda: calls.append(1) or 7) == 7
    assert calls == [1]
