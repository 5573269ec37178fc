"""DGQ's search and QoQ's progressive rounding against plain loops, and what they are for."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import pennyweight
from pennyweight.core import NumericalError, Stats
from pennyweight.formats.dual_grained import dual_grained, integers, multipliers
from pennyweight.formats.rounding import round_to_nearest
from pennyweight.quantize.dgq import DGQ, Search, shares
from pennyweight.quantize.gptq import GPTQ
from pennyweight.quantize.qoq import PROTECTIVE, QoQ, int8_rows
from pennyweight.quantize.rtn import RTN
from tests.contracts.problems import output_loss, problem
from tests.formats.examples import weights
from tests.reference.dgq import two_phase

FORMAT = dual_grained(16)


def row_losses(q, weight, stats):
    error = (q.dequantize() - weight).double()
    return ((error @ stats.gram.double()) * error).sum(1)


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_two_phases_in_plain_loops(seed):
    """A float32 loss beside a tie may fall the other way than in float64: one row may differ."""
    weight, stats = problem(rows=12, columns=64, seed=seed)
    every = DGQ(shortlist=80)
    found = every(weight, FORMAT, stats).weight
    codes, k, zero, row = two_phase(
        weight, stats.gram, FORMAT,
        group_ratios=[1.02 - i / 20 * 0.22 for i in range(1, 21)],
        row_ratios=[1.02 - i / 80 * 0.82 for i in range(1, 81)],
    )  # fmt: skip
    expected = row[:, None] * k.repeat_interleave(16, 1) * (codes - zero.repeat_interleave(16, 1))
    differs = ((found.dequantize() - expected).abs() > 1e-6).any(1)
    # Where rounding to nearest has the smaller error, it is what is stored.
    rounded = round_to_nearest(weight, FORMAT)
    better = row_losses(rounded, weight, stats) < row_losses(found, weight, stats) * (1 + 1e-5)
    assert int((differs & ~better).sum()) <= 1
    assert differs.sum() <= len(weight) // 2  # else the comparison would be empty


def test_the_search_alone_equals_the_loops_before_anything_falls_back():
    weight, stats = problem(rows=24, columns=64)
    search = Search(weight=weight, gram=stats.gram, directions=torch.zeros(64, 1), format=FORMAT)
    scale, zero = search.groups(shares(20, 0.8))
    row, loss = search.rows(scale, zero, shares(80, 0.2), 80)
    _, _, z, s = two_phase(
        weight, stats.gram, FORMAT, group_ratios=shares(20, 0.8), row_ratios=shares(80, 0.2)
    )
    assert torch.equal(zero.double(), z)
    assert int((row[:, 0].double() != s).sum()) <= 1
    assert loss.isfinite().all()


def test_the_shares_are_those_of_the_paper():
    assert shares(20, 0.8)[0] == pytest.approx(1.009) and shares(20, 0.8)[-1] == pytest.approx(0.8)
    assert shares(80, 0.2)[-1] == pytest.approx(0.2) and len(shares(80, 0.2)) == 80


def with_strong_directions(columns=512):
    """Inputs as those of language models: a few directions carry most of their energy."""
    weight, stats = problem(rows=48, columns=columns)
    generator = torch.Generator().manual_seed(1)
    strong = 30 * torch.randn(4, columns, generator=generator)
    return weight, Stats(tokens=stats.tokens, gram=stats.gram + strong.T @ strong)


@pytest.mark.parametrize("make", [problem, with_strong_directions])
def test_the_shortlist_loses_next_to_nothing(make):
    """Measured: 0.1 % where errors of groups are nearly independent, less where they are not."""
    weight, stats = make()[:2]
    loss = lambda n: row_losses(
        DGQ(shortlist=n)(weight, dual_grained(64), stats).weight, weight, stats
    ).sum()
    every = loss(80)
    assert every * (1 - 1e-6) <= loss(4) <= every * 1.01


def test_never_worse_than_rounding_in_any_row():
    weight, stats = with_strong_directions()
    for size in (16, 64, 512):
        found = row_losses(DGQ()(weight, dual_grained(size), stats).weight, weight, stats)
        rounded = row_losses(RTN()(weight, dual_grained(size), stats).weight, weight, stats)
        assert (found <= rounded * (1 + 1e-5)).all() and found.sum() < 0.95 * rounded.sum()


def pylm_weights() -> dict[str, torch.Tensor]:
    file = Path(pennyweight.__file__).parent / "pylm" / "model.safetensors"
    return {k: v.float() for k, v in load_file(file).items() if k.endswith("_proj.weight")}


def test_on_real_weights_the_search_beats_rounding_and_feedback_beats_the_search():
    """On the output error of every linear of a block of the bundled model."""
    for name, weight in pylm_weights().items():
        if ".layers.2." not in name:
            continue
        stats = problem(columns=weight.shape[1], seed=3)[1]
        loss = lambda q, w=weight, s=stats: output_loss(q.dequantize() - w, s)
        format = dual_grained(64)
        rtn, dgq, gptq = (loss(m(weight, format, stats)) for m in (RTN(), DGQ(), GPTQ()))
        assert gptq < dgq < rtn, name


def test_a_hessian_that_is_no_number_is_refused():
    weight, stats = problem()
    stats.gram[3, 3] = torch.nan
    with pytest.raises(NumericalError, match="NaN or Inf"):
        DGQ()(weight, FORMAT, stats)


@pytest.mark.parametrize("clip", ["none", "mse"])
@pytest.mark.parametrize("size", [1e-30, 1e-5, 0.02, 1e4])
@pytest.mark.parametrize("shift", [-10.0, -1.0, 0.0, 1.0])
def test_the_rows_of_qoq_lie_in_the_protective_range(clip, size, shift):
    """-119 .. 119 first; what 4 bits then make of them fits int8 with no code restricted."""
    weight = weights(16, 64, seed=0, size=size, shift=shift)
    rows, scale = int8_rows(weight, FORMAT)
    assert rows.abs().max() <= PROTECTIVE and torch.equal(rows, rows.round())
    if size > 1e-30:  # below, the row scale is the smallest normal number
        assert (rows.abs().amax(1) == PROTECTIVE).all()
        assert ((rows * scale - weight).abs() <= scale / 2 * (1 + 1e-4)).all()
    q = QoQ(clip=clip)(weight, FORMAT, Stats()).weight
    assert integers(q).int().abs().max() <= PROTECTIVE + 8
    # Codes within the grid are the nearest, in steps of k; those at its ends may clip, as k was
    # rounded.
    k, inside = multipliers(q.scale).repeat_interleave(16, 1), (q.codes > 0) & (q.codes < 15)
    assert (((integers(q) - rows).abs() <= k / 2) | ~inside).all() and inside.float().mean() > 0.5


def test_qoq_by_hand():
    """Row scale 1: 119 / 119. Group 1 spans 0 .. 119, k = 8; group 2 -15 .. 15, k = 2, z = 8."""
    weight = torch.tensor([[119.0, 60, 4, 0, -15, 15, 1, 2.6]])
    q = QoQ()(weight, dual_grained(4), Stats()).weight
    assert q.scale.scale.item() == 1 and (q.scale.codes - 128).tolist() == [[8, 2]]
    assert q.zero_point.tolist() == [[0, 8]]
    # 119 / 8 = 14.9, 60 / 8 = 7.5 to even; -15 / 2 = -7.5 to even, 15 / 2 = 7.5 to 8 and past 15;
    # 2.6 becomes 3 first, and 3 / 2 rounds to even
    assert q.codes.tolist() == [[15, 8, 0, 0, 0, 15, 8, 10]]


def test_clipping_lowers_the_squared_error_of_qoq():
    weight, _ = problem(rows=64)
    error = lambda clip: (
        QoQ(clip=clip)(weight, dual_grained(64), Stats()).dequantize() - weight
    ).norm()
    assert error("mse") < 0.97 * error("none")
    assert error("mse") < (round_to_nearest(weight, dual_grained(64)).dequantize() - weight).norm()
