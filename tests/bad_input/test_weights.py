"""Weights that are legal and awkward: every quantizer gives finite weights, and zeros stay zero."""

import pytest
import torch

from pennyweight.core import NumericalError, Stats
from pennyweight.formats.schemes import parse_scheme
from pennyweight.quantize import QUANTIZERS
from pennyweight.quantize.base import Selects
from tests.contracts.problems import takes

ROWS, COLS = 6, 64
SCHEMES = ("W4A16_g32", "W4A16_g32_asym", "W2A16_g32_asym", "W3A16", "W8A8", "W4A8_dgq_g32")


def cases() -> list[tuple[str, str]]:
    """Every quantizer with every scheme that it is made for."""
    formats = {name: parse_scheme(name).weight for name in SCHEMES}
    return [(q, n) for q in QUANTIZERS for n in SCHEMES if takes(QUANTIZERS[q](), formats[n])]


def inputs() -> Stats:
    x = torch.randn(200, COLS, generator=torch.Generator().manual_seed(1))
    return Stats(tokens=200, gram=x.T @ x, absmax=x.abs().amax(0))


def normal() -> torch.Tensor:
    return torch.randn(ROWS, COLS, generator=torch.Generator().manual_seed(0))


def single(value: float) -> torch.Tensor:
    weight = normal()
    weight[0, 5] = value
    return weight


AWKWARD = {
    "zero rows": lambda: normal() * torch.tensor([0, 1, 0, 1, 1, 0.0])[:, None],
    "all zero": lambda: torch.zeros(ROWS, COLS),
    "constant": lambda: torch.full((ROWS, COLS), 0.37),
    "constant and negative": lambda: torch.full((ROWS, COLS), -0.37),
    "positive": lambda: normal().abs() + 1,
    "negative": lambda: -normal().abs() - 1,
    "subnormal": lambda: normal() * 1e-40,
    "tiny": lambda: normal() * 1e-9,
    "one huge": lambda: single(6e4),
    "one beyond float16": lambda: single(1e9),
    "huge": lambda: normal() * 1e15,
}


@pytest.mark.parametrize("kind", AWKWARD)
@pytest.mark.parametrize(("quantizer", "name"), cases())
def test_awkward_weights(quantizer, name, kind):
    weight, stats = AWKWARD[kind](), inputs()
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        format = parse_scheme(name, dtype).weight
        q = QUANTIZERS[quantizer]()(weight, format, stats)
        rounded = q.dequantize()
        assert rounded.isfinite().all(), dtype
        # Error feedback may lift a zero weight of a live row, but a row of zeros has no error.
        dead = (weight == 0).all(1)
        assert (rounded[dead] == 0).all(), dtype


INDEPENDENT = [case for case in cases() if not isinstance(QUANTIZERS[case[0]](), Selects)]


@pytest.mark.parametrize(("quantizer", "name"), INDEPENDENT)
def test_a_single_huge_value_costs_only_its_own_group(quantizer, name):
    """Rows are independent, so the other rows come out as they do without it."""
    format, stats = parse_scheme(name, torch.float32).weight, inputs()
    plain = QUANTIZERS[quantizer]()(normal(), format, stats).dequantize()
    found = QUANTIZERS[quantizer]()(single(1e6), format, stats).dequantize()
    assert torch.equal(plain[1:], found[1:])
    assert (found[0, 5] / 1e6 - 1).abs() < 0.55  # of W2: the grid may clip to half of the range


@pytest.mark.parametrize(("quantizer", "name"), cases())
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 3.4e38])
def test_values_that_no_code_can_stand_for(quantizer, name, value):
    """The largest float32 has codes, but no arithmetic: a finite result or an error."""
    format = parse_scheme(name, torch.float32).weight
    try:
        q = QUANTIZERS[quantizer]()(single(value), format, inputs())
    except NumericalError:
        return
    assert q.dequantize().isfinite().all()
    assert value == 3.4e38
