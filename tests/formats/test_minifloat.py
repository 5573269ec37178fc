"""Small floats: bit for bit those of torch and of the OCP tables, and the nearest there is."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pennyweight.formats import GRIDS
from tests.reference import minifloat

FLOATS = [name for name in GRIDS if name[0] == "e" and name[2] == "m"]
TORCH = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


def every_bfloat16() -> torch.Tensor:
    """All finite ones, which include every value and every tie of 8 bits within their exponents."""
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.uint16)
    found = bits.view(torch.bfloat16).float()
    return found[found.isfinite()]


def every_code(grid) -> torch.Tensor:
    return torch.arange(2**grid.bits, dtype=torch.uint8)


def finite_codes(grid) -> torch.Tensor:
    codes = every_code(grid)
    return codes[grid.decode(codes).isfinite()]


@pytest.mark.parametrize("name", TORCH)
def test_the_bits_are_those_of_torch(name):
    grid, values = GRIDS[name], every_bfloat16()
    assert grid.highest == torch.finfo(TORCH[name]).max
    values = values[values.abs() <= grid.highest]
    assert torch.equal(grid.encode(values), values.to(TORCH[name]).view(torch.uint8))
    theirs = every_code(grid).view(TORCH[name]).float()
    assert torch.equal(grid.decode(every_code(grid)).nan_to_num(7), theirs.nan_to_num(7))
    assert torch.equal(grid.decode(every_code(grid)).isnan(), theirs.isnan())


# OCP Microscaling Formats 1.0, section 5.3: every value of FP4, and the ends of FP6.
E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
ENDS = {  # largest, smallest normal, largest subnormal, smallest subnormal
    "e3m2": (28, 0.25, 0.1875, 0.0625),
    "e2m3": (7.5, 1, 0.875, 0.125),
    "e2m1": (6, 1, 0.5, 0.5),
    "e4m3": (448, 2**-6, 0.875 * 2**-6, 2**-9),  # OCP 8-bit Floating Point 1.0
    "e5m2": (57344, 2**-14, 0.75 * 2**-14, 2**-16),
    "e3m4": (30, 0.25, 0.234375, 0.015625),
}


def test_e2m1_is_the_table_of_ocp():
    codes = torch.arange(16, dtype=torch.uint8)
    assert GRIDS["e2m1"].decode(codes).tolist() == E2M1 + [-v for v in E2M1]


@pytest.mark.parametrize("name", ENDS)
def test_the_ends_are_those_of_ocp(name):
    grid, mantissa = GRIDS[name], int(name[3])
    largest, normal, below, smallest = ENDS[name]
    assert (grid.lowest, grid.highest, grid.reach) == (-largest, largest, largest)
    at = lambda code: grid.decode(torch.tensor(code, dtype=torch.uint8)).item()
    assert (at(2**mantissa), at(2**mantissa - 1), at(1)) == (normal, below, smallest)


@pytest.mark.parametrize("name", FLOATS)
@given(value=st.floats(-1e4, 1e4, width=32) | st.floats(-2, 2, width=32))
def test_the_nearest_value_is_found_and_ties_are_even(name, value):
    grid = GRIDS[name]
    sizes = minifloat.values(int(name[1]), int(name[3]))
    sizes = [size for size in sizes if size <= grid.highest]
    code = int(grid.encode(torch.tensor([value])))
    sign = 2 ** (grid.bits - 1)
    assert code % sign == minifloat.nearest(value, sizes)
    assert (code >= sign) == (str(value)[0] == "-")
    assert grid.decode(torch.tensor([code], dtype=torch.uint8)).abs().item() == sizes[code % sign]


@pytest.mark.parametrize("name", FLOATS)
def test_every_finite_code_comes_back(name):
    grid = GRIDS[name]
    codes = finite_codes(grid)
    assert torch.equal(grid.encode(grid.decode(codes)), codes)
    dropped = {"e4m3": 2, "e3m4": 2, "e5m2": 8}.get(name, 0)
    assert len(codes) == 2**grid.bits - dropped


@pytest.mark.parametrize("name", FLOATS)
def test_the_short_way_rounds_as_the_long_one(name):
    grid, values = GRIDS[name], every_bfloat16()
    short = grid.nearest_(values.clone())
    assert torch.equal(short, grid.decode(grid.encode(values)))


@pytest.mark.parametrize("name", FLOATS)
def test_what_is_too_large_saturates_and_specials_are_never_made(name):
    grid = GRIDS[name]
    values = torch.tensor([grid.highest * 1.5, 3e38, torch.inf])
    for sign in (1, -1):
        assert (grid.decode(grid.encode(sign * values)) == sign * grid.highest).all()


def test_arguments_are_left_alone():
    values = torch.randn(64)
    before = values.clone()
    GRIDS["e4m3"].encode(values)
    assert torch.equal(values, before)
