"""GPTQ against the paper's algorithm, and what it does where the Hessian is not nice."""

import pytest
import torch

from pennyweight.core import Format, NumericalError, Serial, Stats
from pennyweight.formats import GRIDS
from pennyweight.formats.schemes import parse_scheme
from pennyweight.quantize import gptq
from pennyweight.quantize.gptq import GPTQ
from pennyweight.quantize.rtn import RTN
from tests.contracts.problems import output_loss, problem
from tests.reference.obq import gptq_by_column

SCHEMES = ["W4A16_g32", "W4A16_g64", "W4A16_g128", "W4A16", "W3A16_g64_asym", "W2A16_g16_asym"]


def scheme_format(name: str) -> Format:
    return parse_scheme(name, torch.float16).weight  # float32 ones put the largest weight on a tie


def rows_that_differ(found, expected) -> int:
    """A float32 value beside a tie may round the other way than in float64, and takes its row
    along."""
    return int(((found - expected).abs() > 1e-5).any(1).sum())


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("act_order", [False, True])
def test_equals_the_algorithm_of_the_paper(scheme, act_order):
    weight, stats = problem()
    quantize = GPTQ(range="minmax", act_order=act_order)
    found = quantize(weight, scheme_format(scheme), stats).dequantize()
    expected = gptq_by_column(
        weight, scheme_format(scheme), stats.hessian, damp=0.01, act_order=act_order
    )
    assert rows_that_differ(found, expected) <= 1


@pytest.mark.parametrize("columns", [16, 48, 80, 272])
@pytest.mark.parametrize("group", [None, 8, 16])
def test_equals_it_for_odd_widths(columns, group):
    weight, stats = problem(rows=8, columns=columns)
    format = Format(grid=GRIDS["int4"], group_size=group, scale=torch.float16)
    found = GPTQ(range="minmax", act_order=False)(weight, format, stats).dequantize()
    expected = gptq_by_column(weight, format, stats.hessian, damp=0.01)
    assert rows_that_differ(found, expected) <= 1


@pytest.mark.parametrize("leaf", [1, 4, 64, 512])
@pytest.mark.parametrize("scheme", ["W4A16_g32", "W3A16_g64_asym", "W4A16"])
@pytest.mark.parametrize("act_order", [False, True])
def test_how_the_work_is_cut_never_changes_the_result(leaf, scheme, act_order, monkeypatch):
    weight, stats = problem()
    quantize = GPTQ(act_order=act_order)
    expected = quantize(weight, scheme_format(scheme), stats).dequantize()
    monkeypatch.setattr(gptq, "LEAF", leaf)
    found = quantize(weight, scheme_format(scheme), stats).dequantize()
    assert rows_that_differ(found, expected) <= 1


def test_beats_rounding_on_the_output_but_not_on_the_weight():
    weight, stats = problem()
    found, rtn = (
        q(weight, scheme_format("W4A16_g64"), stats).dequantize() - weight for q in (GPTQ(), RTN())
    )
    assert output_loss(found, stats) < 0.7 * output_loss(rtn, stats)
    assert found.norm() > rtn.norm()


@pytest.mark.parametrize("act_order", [False, True])
def test_a_column_that_saw_no_input_is_rounded_and_disturbs_nobody(act_order):
    weight, stats = problem()
    dead, gram = [5, 77], stats.gram.clone()
    gram[dead], gram[:, dead] = 0, 0
    seen = Stats(tokens=stats.tokens, gram=gram)
    format = scheme_format("W4A16_g64")
    quantize = GPTQ(range="minmax", act_order=act_order)
    q = quantize(weight, format, seen).weight
    step = q.scale.repeat_interleave(64, 1)[:, dead]
    within = weight[:, dead].abs() <= 7 * step  # the group's scale may have come from elsewhere
    error = (q.dequantize() - weight)[:, dead].abs()
    assert (error[within] <= 0.5001 * step[within]).all()
    other = weight.clone()
    other[:, dead] = 0
    live = torch.ones(256, dtype=torch.bool)
    live[dead] = False
    shared = (weight.view(48, 4, 64).abs().amax(2) == other.view(48, 4, 64).abs().amax(2)).all(1)
    assert torch.equal(
        quantize(other, format, seen).weight.codes[shared][:, live], q.codes[shared][:, live]
    )


def test_inputs_that_are_all_zero_mean_rounding():
    weight, _ = problem()
    format = scheme_format("W4A16_g64")
    nothing = Stats(tokens=10, gram=torch.zeros(256, 256))
    found = GPTQ(range="minmax")(weight, format, nothing).weight
    assert torch.equal(found.codes, RTN()(weight, format, nothing).weight.codes)


def indefinite(lowest: float):
    """Stats whose Hessian has eigenvalues of about 1, and one that is `lowest`."""
    direction = torch.full((64, 1), 1 / 8)
    return Stats(tokens=1, gram=torch.eye(64) - (1 - lowest) * direction @ direction.T)


def test_damping_that_had_to_be_raised_is_reported():
    weight, _ = problem(columns=64)
    format = scheme_format("W4A16_g32")
    assert GPTQ()(weight, format, indefinite(0.5)).notes["damp"] == 0.01
    assert GPTQ()(weight, format, indefinite(-0.05)).notes["damp"] == pytest.approx(0.1)
    assert GPTQ(damp=0.0)(weight, format, indefinite(-0.05)).notes["damp"] == pytest.approx(0.1)
    with pytest.raises(NumericalError, match="not positive definite even with damp=1"):
        GPTQ()(weight, format, indefinite(-3.0))


def test_a_hessian_of_rank_one_is_solved():
    x = torch.randn(1, 64, generator=torch.Generator().manual_seed(0))
    weight, _ = problem(columns=64)
    stats = Stats(tokens=1, gram=x.T @ x)
    q = GPTQ()(weight, scheme_format("W4A16_g32"), stats)
    rtn = RTN()(weight, scheme_format("W4A16_g32"), stats)
    assert output_loss(q.dequantize() - weight, stats) < output_loss(
        rtn.dequantize() - weight, stats
    )


def test_inputs_that_are_not_finite_are_refused():
    weight, stats = problem()
    stats.gram[3, 3] = float("nan")
    with pytest.raises(NumericalError, match="NaN or Inf"):
        GPTQ()(weight, scheme_format("W4A16_g32"), stats)


def test_the_factor_is_that_of_the_inverse():
    from pennyweight.quantize.factor import inverse_factor

    _, stats = problem(columns=600)  # wider than a leaf of the inversion
    for act_order in (False, True):
        factor = inverse_factor(stats, 0.01, act_order, Serial())
        order, upper = factor.order, factor.upper.double()
        assert torch.equal(upper, upper.triu())
        damped = stats.hessian.double()
        damped = damped + 0.01 * damped.diagonal().mean() * torch.eye(600)
        product = upper.T @ upper @ damped[order][:, order]
        assert (product - torch.eye(600)).abs().max() < 1e-2 / 600 * torch.linalg.cond(
            damped
        ) ** 0.5
