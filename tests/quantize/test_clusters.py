"""Tables by k-means: exact where it can be checked, never worse than even steps, odd rows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pennyweight.core import FormatError, NumericalError, RecipeError, Serial, Stats
from pennyweight.formats.rounding import round_to_nearest
from pennyweight.formats.schemes import parse_scheme
from pennyweight.pipeline.solve import solve
from pennyweight.quantize import QUANTIZERS
from pennyweight.quantize.clusters import cluster
from tests.formats.examples import shifts, weights
from tests.formats.test_storage import assert_equal
from tests.quantize.real import LINEARS, real_layers
from tests.reference.kmeans import least_loss, least_loss_of_many

FORMATS = {bits: parse_scheme(f"W{bits}A16_table", torch.float32).weight for bits in (2, 3, 4)}
KMEANS, SQUEEZELLM = QUANTIZERS["kmeans"], QUANTIZERS["squeezellm"]


def importance_of(weight, seed):
    """Of very unequal sizes, some of it zero."""
    generator = torch.Generator().manual_seed(seed)
    mass = torch.randn(weight.shape, generator=generator).pow(6)
    return mass.where(torch.rand(weight.shape, generator=generator) > 0.2, 0.0)


def loss(q, weight, importance):
    return (importance.double() * (q.dequantize().double() - weight).square()).sum(1)


@given(cols=st.integers(1, 10), bits=st.sampled_from([2, 3]), seed=st.integers(0, 10**6))
def test_short_rows_get_the_exact_optimum(cols, bits, seed):
    weight = weights(3, cols, seed, size=1.0)
    importance = importance_of(weight, seed) + 1e-3
    found = loss(cluster(weight, importance, FORMATS[bits]), weight, importance)
    for row in range(3):
        best = least_loss(weight[row].tolist(), importance[row].tolist(), 2**bits)
        # 1e-6: squares of the float32 rounding of a table of numbers of size one, times the mass
        assert found[row] <= best * (1 + 1e-6) + 1e-12 * importance[row].sum()


def test_up_to_as_many_values_as_cells_are_exact():
    weight = weights(2, 100, 0, size=1.0)
    importance = importance_of(weight, 1)
    found = loss(cluster(weight, importance, FORMATS[3]), weight, importance)
    for row in range(2):
        best = least_loss_of_many(weight[row].tolist(), importance[row].tolist(), 8)
        assert found[row].item() == pytest.approx(best, rel=1e-5)


def test_long_rows_come_close_to_the_exact_optimum():
    weight = weights(1, 400, 0, size=1.0)
    importance = importance_of(weight, 1)
    found = loss(cluster(weight, importance, FORMATS[3]), weight, importance)
    best = least_loss_of_many(weight[0].tolist(), importance[0].tolist(), 8)
    assert best <= found.item() < 1.02 * best


@given(
    rows=st.integers(1, 70), cols=st.integers(1, 300), bits=st.sampled_from([2, 3, 4]),
    seed=st.integers(0, 999), shift=shifts, dtype=st.sampled_from([torch.float16, torch.bfloat16]),
)  # fmt: skip
def test_never_above_even_steps(rows, cols, bits, seed, shift, dtype):
    weight = weights(rows, cols, seed, shift=shift)
    importance, format = (
        importance_of(weight, seed),
        parse_scheme(f"W{bits}A16_table", dtype).weight,
    )
    found = loss(cluster(weight, importance, format), weight, importance)
    even = loss(round_to_nearest(weight, format), weight, importance)
    # The tables are compared in float64, the codes chosen in float32: ties may fall otherwise.
    assert (found <= even * (1 + 1e-5)).all()


@pytest.mark.parametrize("name", LINEARS)
@pytest.mark.parametrize("bits", [3, 4])
def test_on_real_weights_fisher_k_means_is_far_below_integers(name, bits):
    """SqueezeLLM's claim: its loss, the Fisher-weighted error, is the least."""
    weight, stats = real_layers()[name]
    fisher, format = stats.squared_gradient, FORMATS[bits]
    found = loss(cluster(weight, fisher, format), weight, fisher)
    plain = loss(cluster(weight, torch.ones_like(weight), format), weight, fisher)
    integers = parse_scheme(f"W{bits}A16_asym", torch.float32).weight
    uniform = loss(round_to_nearest(weight, integers), weight, fisher)
    assert (found <= uniform * (1 + 1e-5)).all()
    assert found.sum() < 0.8 * plain.sum() and found.sum() < 0.5 * uniform.sum()


def test_rows_of_few_values_are_exact():
    values = torch.tensor([-0.75, 0.0, 0.5, 3.0])
    index = torch.randint(4, (5, 200), generator=torch.Generator().manual_seed(0))
    weight = torch.cat([values[index], torch.full((1, 200), 0.3125), torch.zeros(1, 200)])
    q = cluster(weight, torch.ones_like(weight), FORMATS[3])
    assert torch.equal(q.dequantize(), weight)


@pytest.mark.parametrize("shape", [(5, 1), (1, 1), (1, 33)])
def test_narrow_matrices(shape):
    weight = weights(*shape, 0)
    q = cluster(weight, torch.ones_like(weight), FORMATS[4])
    assert q.codes.shape == shape
    if shape[1] <= 16:
        assert torch.equal(q.dequantize(), weight)


def test_a_row_that_does_not_matter_is_treated_as_if_it_did():
    weight = weights(3, 64, 0)
    importance = torch.ones_like(weight)
    importance[1] = 0
    like = cluster(weight, torch.ones_like(weight), FORMATS[3])
    assert_equal(cluster(weight, importance, FORMATS[3]), like)


def test_pruned_weights_stay_zero_if_asked():
    weight = weights(4, 256, 0, shift=0.5)
    weight[:3, ::2] = 0
    ones = torch.ones_like(weight)
    kept = cluster(weight, ones, FORMATS[3], keep_zeros=True)
    assert (kept.dequantize()[:3, ::2] == 0).all()
    free = cluster(weight, ones, FORMATS[3])
    assert torch.equal(kept.rows(3, 4).dequantize(), free.rows(3, 4).dequantize())
    assert (
        loss(kept, weight, ones) <= loss(round_to_nearest(weight, FORMATS[3]), weight, ones)
    ).all()


@pytest.mark.parametrize("scale", [1e-18, 1e18])
def test_the_unit_of_importance_does_not_matter(scale):
    """Squares of gradients are tiny."""
    weight = weights(4, 300, 0)
    importance = importance_of(weight, 0)
    q = cluster(weight, importance, FORMATS[3])
    assert_equal(cluster(weight, importance * scale, FORMATS[3]), q)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_what_is_no_importance_is_refused(bad):
    weight = weights(4, 30, 0)
    importance = torch.ones_like(weight)
    importance[2, 3] = bad
    with pytest.raises(NumericalError, match="importance"):
        cluster(weight, importance, FORMATS[3])


@pytest.mark.parametrize("method", [KMEANS(), SQUEEZELLM()])
def test_other_formats_are_refused(method):
    weight = weights(4, 64, 0)
    stats = Stats(squared_gradient=torch.ones_like(weight))
    with pytest.raises(FormatError, match="int4_g32 has no table per row"):
        method(weight, parse_scheme("W4A16_g32").weight, stats)


def sparse_problem():
    weight = weights(40, 500, 0)
    weight[3, 5] = 9.0
    fisher = importance_of(weight, 0)
    fisher[7, 70] = fisher.max() * 10
    return weight, Stats(samples=1, squared_gradient=fisher)


def test_squeezellm_keeps_the_sensitive_and_the_large():
    weight, stats = sparse_problem()
    format = parse_scheme("W3A16_table").weight
    method = SQUEEZELLM(sensitive=0.001, outliers=0.01)
    found = solve(method, weight, format, stats, Serial())
    (sparse,) = found.corrections
    assert int(sparse.keep.sum()) == 20 + 200  # of 20 000 weights
    assert sparse.keep[3, 5] and sparse.keep[7, 70]
    out = found.dequantize()
    assert torch.equal(out[sparse.keep], weight[sparse.keep].half().float())
    dense = solve(SQUEEZELLM(sensitive=0.0, outliers=0.0), weight, format, stats, Serial())
    assert not dense.corrections
    fisher = stats.squared_gradient
    left = lambda one: (fisher * (one.dequantize() - weight).square()).sum()
    assert left(found) < left(dense)


def test_what_is_kept_does_not_count():
    """Its value may be anything: the table and the other codes are the same."""
    weight, stats = sparse_problem()
    format = parse_scheme("W3A16_table").weight
    method = SQUEEZELLM(sensitive=0.001, outliers=0.01)
    found = solve(method, weight, format, stats, Serial())
    weight = weight.clone()
    weight[3, 5] = 1000.0
    again = solve(method, weight, format, stats, Serial())
    assert torch.equal(found.weight.table, again.weight.table)


@pytest.mark.parametrize("share,kept", [(0.0, 0), (1.0, 20_000)])
def test_none_or_all_of_a_weight_may_be_kept(share, kept):
    weight, stats = sparse_problem()
    format = parse_scheme("W3A16_table").weight
    found = solve(SQUEEZELLM(sensitive=share, outliers=0.0), weight, format, stats, Serial())
    assert sum(int(one.keep.sum()) for one in found.corrections) == kept
    if kept:
        assert torch.equal(found.dequantize(), weight.half().float())


def test_a_share_beyond_all_is_refused():
    weight, stats = sparse_problem()
    with pytest.raises(RecipeError, match="share"):
        SQUEEZELLM(outliers=1.5).select(weight, FORMATS[3], stats, Serial())


def test_gradients_are_needed():
    with pytest.raises(NumericalError, match="squared_gradient"):
        SQUEEZELLM(sensitive=0.0, outliers=0.0)(weights(2, 8, 0), FORMATS[3], Stats())
