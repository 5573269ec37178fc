"""Names of formats of keys, values and operands."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pennyweight.core import UnknownNameError
from pennyweight.formats.operands import COMMON, parse_operand
from pennyweight.formats.schemes import parse_scheme


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("int8", "W8A16"), ("int4_g32", "W4A16_g32"), ("int4_g32_asym", "W4A16_g32_asym"),
        ("fp8", "W8A16_fp8"), ("e3m2_g16", "W6A16_e3m2_g16"), ("nf4_g16", "W4A16_nf4_g16"),
        ("mxfp4", "MXFP4A16"), ("mxint4_g16", "MXINT4A16_g16"), ("mxe5m2_row", "MXE5M2A16_row"),
        ("mxint4_g16_msfp", "MXINT4A16_g16_msfp"),
    ],
)  # fmt: skip
def test_a_name_is_the_weight_of_a_scheme(name, scheme):
    found = parse_operand(name)
    assert found.dynamic
    assert found.format == parse_scheme(scheme).weight


@given(st.integers(2, 8), st.none() | st.integers(1, 99_999), st.booleans())
def test_a_name_says_the_format_and_comes_back_from_it(bits, group, asym):
    name = f"int{bits}{f'_g{group}' if group else ''}{'_asym' if asym else ''}"
    assert parse_operand(name).format.name == name


def test_each_format_has_one_name():
    found = [parse_operand(name) for name in COMMON]
    assert len(set(found)) == len(COMMON)


def test_static_formats_have_one_scale_for_the_tensor():
    most, least = parse_operand("int8_static"), parse_operand("int8_staticmin")
    assert (most.dynamic, most.observed) == (False, "absmax")
    assert (least.dynamic, least.observed) == (False, "least_absmax")
    assert most.format.groups(6, 32) == parse_operand("fp8_static").format.groups(6, 32) == (1, 1)
    assert not parse_operand("nvfp4").dynamic


def test_scales_are_as_short_as_asked_but_for_8_bit_floats():
    assert parse_operand("int8").format.scale is torch.float16
    assert parse_operand("int8", torch.float32).format.scale is torch.float32
    assert parse_operand("fp8").format.scale is torch.float32


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("INT8", "int8"), ("int9", "int8"), ("e4m3", "fp8"), ("fp8_statc", "fp8_static"),
        ("mxint4_g32", "mxint4"), ("int4_g32_static", "int8_static"), ("int8_asym_static", "int8"),
        ("int4_32", "int4_g32"), ("W8A8", None), ("", None), ("e6m6", None),
    ],
)  # fmt: skip
def test_other_names_are_errors(name, nearest):
    hint = f"did you mean '{nearest}" if nearest else f"unknown format {name!r} of keys"
    with pytest.raises(UnknownNameError, match=hint):
        parse_operand(name)
