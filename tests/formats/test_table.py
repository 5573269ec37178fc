"""Codes that are looked up: NF4, and a table of each row's own."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pennyweight.core import FormatError
from pennyweight.formats import GRIDS
from pennyweight.formats.rounding import fit, round_to_nearest
from pennyweight.formats.schemes import parse_scheme
from pennyweight.formats.storage import bits_per_weight, pack, unpack
from pennyweight.formats.table import NF4, tabulate
from tests.formats.examples import shifts, sizes, weights
from tests.formats.test_storage import assert_equal

TABLE3 = parse_scheme("W3A16_table").weight


def test_nf4_is_what_its_paper_derives():
    """QLoRA, appendix E: quantiles of a Gaussian at evenly spaced probabilities, 8 from 0.9677 down
    to 0.5 on one side and 7 on the other, without their common middle, scaled to one."""
    offset = 0.9677083
    side = lambda count: torch.special.ndtri(
        torch.linspace(offset, 0.5, count, dtype=torch.float64)[:-1]
    )
    values = torch.cat([side(9), -side(8), torch.zeros(1)]).sort().values
    # 2e-6: the published values come from a float32 computation
    assert torch.allclose(values / values.max(), torch.tensor(NF4).double(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", ["nf4", "gauss1_4", "gauss1_8", "gauss1_16"])
def test_every_code_decodes_and_encodes_to_itself(name):
    grid = GRIDS[name]
    codes = torch.arange(2**grid.bits, dtype=torch.uint8)
    assert torch.equal(grid.encode(grid.decode(codes)), codes)
    ends = torch.tensor([-3e38, 3e38])
    assert grid.decode(grid.encode(ends)).tolist() == [grid.lowest, grid.highest]


@given(seed=st.integers(0, 99))
def test_a_table_encodes_to_the_nearest_value(seed):
    value, table = weights(1, 50, seed, size=0.6)[0], torch.tensor(NF4)
    found = GRIDS["nf4"].decode(GRIDS["nf4"].encode(value))
    slow = table[(value[:, None] - table).abs().argmin(1)]
    assert torch.equal(found, slow)
    assert torch.equal(GRIDS["nf4"].nearest_(value.clone()), slow)


def test_nf4_loses_less_than_four_bit_integers_on_gaussian_weights():
    weight = weights(64, 1024, seed=0)
    loss = lambda name: (
        round_to_nearest(weight, parse_scheme(name).weight).dequantize() - weight
    ).norm()
    assert loss("W4A16_nf4_g64") < 0.95 * loss("W4A16_g64")


@given(rows=st.integers(1, 5), cols=st.integers(1, 70), seed=st.integers(0, 99), size=sizes,
       shift=shifts)  # fmt: skip
def test_even_steps_hold_zero_and_are_never_off_by_over_half_a_step(rows, cols, seed, size, shift):
    """Plain rounding into a table of a row is what asymmetric integers do."""
    weight = weights(rows, cols, seed, size=size, shift=shift)
    weight[:, ::3] = 0
    format = parse_scheme("W3A16_table", torch.float32).weight
    q = round_to_nearest(weight, format)
    assert (q.dequantize()[:, ::3] == 0).all()
    step = weight.amax(1).clamp(min=0) - weight.amin(1).clamp(max=0)
    # The zero is rounded to a step, so an end may be off by half of one more.
    error = (q.dequantize() - weight).abs().amax(1)
    assert (error <= (1 + 1e-6) * step / 7).all()


@given(rows=st.integers(1, 9), cols=st.integers(1, 40), seed=st.integers(0, 99))
def test_each_weight_is_the_nearest_value_of_its_row(rows, cols, seed):
    weight, table = weights(rows, cols, seed), weights(rows, 8, seed + 1)
    q = tabulate(weight, table, TABLE3)
    stored = table.half().float()
    error = (weight[:, :, None] - stored[:, None]).abs().amin(2)
    assert torch.equal((q.dequantize() - weight).abs(), error)
    assert_equal(unpack(pack(q), TABLE3, (rows, cols)), q)


def test_rows_take_their_table_with_them():
    weight = weights(10, 64, 0)
    q = round_to_nearest(weight, TABLE3)
    assert_equal(q.rows(0, 4).join([q.rows(4, 9), q.rows(9, 10)]), q)
    assert torch.equal(q.rows(3, 7).dequantize(), q.dequantize()[3:7])


def test_bits_count_the_table():
    assert bits_per_weight(TABLE3, (8, 4096)) == 3 + 8 * 16 / 4096
    assert bits_per_weight(parse_scheme("W4A16_nf4_g64").weight, (8, 256)) == 4 + 16 / 64


def test_what_a_table_cannot_hold_goes_to_its_ends():
    q = round_to_nearest(torch.tensor([[-3e38, 0.0, 1e-30, 3e38]]), TABLE3)
    assert q.dequantize()[0, [0, 3]].tolist() == [-65504.0, 65504.0]
    assert q.dequantize()[0, [1, 2]].tolist() == [0.0, 0.0]


def test_there_is_no_scale_to_choose():
    with pytest.raises(FormatError, match="int3_table has a table per row and no scale"):
        fit(weights(2, 8, 0), TABLE3)
