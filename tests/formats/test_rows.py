"""Cutting what is stored by rows: which formats allow it, and what is cut."""

import pytest
import torch

from pennyweight.core import Format, FormatError
from pennyweight.formats import GRIDS
from pennyweight.formats.rounding import round_to_nearest
from pennyweight.formats.schemes import parse_scheme
from tests.formats.examples import formats, weights
from tests.formats.test_storage import assert_equal

FORMATS = formats() | {"W8A16_fp8_block": parse_scheme("W8A16_fp8_block").weight}


@pytest.mark.parametrize("name", FORMATS)
def test_rows_are_independent_exactly_where_the_format_says_so(name):
    """A row that is a million times larger is seen in the scales that it shares."""
    format, weight = FORMATS[name], weights(256, 256, seed=0)
    weight[200] *= 1e6
    whole = round_to_nearest(weight, format)
    alone = round_to_nearest(weight[:128], format).dequantize()
    assert torch.equal(alone, whole.dequantize()[:128]) == format.rows_independent or (
        format.group_rows == 128  # the halves are whole blocks
    )


@pytest.mark.parametrize("name", FORMATS)
def test_rows_are_the_rows(name):
    """Also of formats that share a scale: what is cut off keeps it."""
    q = round_to_nearest(weights(256, 256, seed=1), FORMATS[name])
    cut = q.rows(128, 256)
    assert torch.equal(cut.dequantize(), q.dequantize()[128:])
    if FORMATS[name].rows_independent:
        assert_equal(q.rows(0, 128).join([cut]), q)


def test_a_cut_through_a_block_is_refused():
    q = round_to_nearest(weights(256, 128, seed=2), FORMATS["W8A16_fp8_block"])
    with pytest.raises(FormatError, match="cut through groups of 128 rows"):
        q.rows(64, 256)


def test_independence_is_asked_of_every_level():
    shared = Format(grid=GRIDS["e4m3"], group_rows=None, scale=torch.float32)
    own = Format(grid=GRIDS["e4m3"], scale=torch.float32)
    make = lambda **levels: Format(grid=GRIDS["int4"], group_size=16, **levels)
    assert make(scale=own).rows_independent
    assert not make(scale=shared).rows_independent
    assert not make(scale=torch.float16, zero_point=shared).rows_independent
    assert not make(scale=Format(grid=GRIDS["int6"], scale=shared)).rows_independent
