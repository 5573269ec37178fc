"""What every registered saliency promises, and that each is its formula."""

import pytest
import torch

from pennyweight.core import NumericalError, Stats
from pennyweight.formats.rounding import round_to_nearest
from pennyweight.formats.schemes import parse_scheme
from pennyweight.saliency import SALIENCIES
from pennyweight.saliency.base import Saliency
from tests.contracts.problems import problem, reordered

FORMAT = parse_scheme("W3A16_g32_asym").weight


@pytest.fixture(params=list(SALIENCIES))
def saliency(request):
    return SALIENCIES[request.param]()


def test_one_score_for_each_weight_and_rows_are_independent(saliency):
    weight, stats = problem(rows=8, columns=64)
    score = saliency(weight, FORMAT, stats)
    assert isinstance(saliency, Saliency) and saliency.source
    assert score.shape == weight.shape and bool((score >= 0).all())
    part = saliency(weight[2:5], FORMAT, stats.rows(2, 5))
    assert torch.equal(part, score[2:5])
    order = torch.tensor([3, 1, 0, 2, 7, 6, 5, 4])
    assert torch.equal(saliency(weight[order], FORMAT, reordered(stats, order)), score[order])


def test_what_it_needs_is_what_it_reads(saliency):
    weight, stats = problem(rows=8, columns=64)
    given = {name: getattr(stats, name) for name in saliency.needs}
    enough = Stats(tokens=stats.tokens, samples=stats.samples, **given)
    assert torch.equal(saliency(weight, FORMAT, enough), saliency(weight, FORMAT, stats))
    if saliency.needs:
        with pytest.raises(NumericalError, match="needs calibration data"):
            saliency(weight, FORMAT, Stats())


def test_each_is_its_formula():
    weight, stats = problem(rows=3, columns=32)
    rounded = round_to_nearest(weight, FORMAT).dequantize()
    hessian = stats.gram.double() / stats.tokens
    hessian += 0.01 * hessian.diagonal().mean() * torch.eye(32)
    inverse = hessian.inverse()
    for o, i in [(0, 0), (2, 31), (1, 7)]:
        w, dq = weight[o, i].item(), (weight[o, i] - rounded[o, i]).item()
        g, g2 = stats.abs_gradient[o, i].item(), stats.squared_gradient[o, i].item()
        expected = {
            "magnitude": abs(w), "abs_gradient": g, "gradient_weight": g * abs(w), "fisher": g2,
            "fisher_error": g2 * dq**2, "hessian_diagonal": stats.gram[i, i].item() * dq**2,
            "spqr": dq**2 / inverse[i, i].item(),
        }  # fmt: skip
        assert expected.keys() == set(SALIENCIES)
        for name, value in expected.items():
            found = SALIENCIES[name]()(weight, FORMAT, stats)[o, i].item()
            # a handful of float32 operations, each off by 6e-8
            assert found == pytest.approx(value, rel=1e-5), name


def test_a_column_without_inputs_and_a_singular_hessian():
    weight, _ = problem(rows=3, columns=32)
    spqr = SALIENCIES["spqr"]()
    assert spqr(weight, FORMAT, Stats(tokens=1, gram=torch.zeros(32, 32))).isfinite().all()
    with pytest.raises(NumericalError, match="not positive definite"):
        spqr(weight, FORMAT, Stats(tokens=1, gram=-torch.eye(32)))
