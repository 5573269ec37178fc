"""Names of schemes: they say everything, and what they say comes back."""

import pytest
import torch
from compressed_tensors.compressors.format import infer_module_format
from compressed_tensors.quantization import QuantizationScheme, preset_name_to_scheme
from hypothesis import given
from hypothesis import strategies as st

from pennyweight.core import FormatError, UnknownNameError, UnsupportedError
from pennyweight.export.compressed_tensors import activation_args, weight_args
from pennyweight.formats import GRIDS
from pennyweight.formats.compressed_config import Numbers, scheme_name
from pennyweight.formats.compressed_tensors import layout
from pennyweight.formats.schemes import COMMON, E8M0, FLOATS, UNTOUCHED, parse_scheme
from pennyweight.model.compressed import GROUPS

names = st.builds(
    lambda bits, group, asym: f"W{bits}A16{f'_g{group}' if group else ''}{'_asym' if asym else ''}",
    st.integers(2, 8), st.none() | st.integers(1, 99_999), st.booleans(),
)  # fmt: skip


@given(name=names, dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]))
def test_a_name_says_the_format_and_comes_back_from_it(name, dtype):
    scheme = parse_scheme(name, dtype)
    format = scheme.weight
    assert scheme.name == name and scheme.activation is None and format.scale is dtype
    group = f"_g{format.group_size}" if format.group_size else ""
    assert name == f"W{format.grid.bits}A16{group}{'' if format.symmetric else '_asym'}"


def exportable(name: str) -> bool:
    try:
        return bool(layout(parse_scheme(name)))
    except FormatError as error:
        assert name in str(error) and "packed" in str(error)
        return False


SCHEMES = sorted(set(COMMON) - {UNTOUCHED})
EXPORTABLE = [name for name in SCHEMES if exportable(name)]
NOT = [name for name in SCHEMES if name not in EXPORTABLE]


def config_group(name: str) -> dict:
    """What is written in config.json, read again by the library and then by us."""
    scheme = parse_scheme(name)
    written = QuantizationScheme(
        targets=["Linear"], weights=weight_args(scheme.weight),
        input_activations=activation_args(scheme.activation), format=layout(scheme),
    )  # fmt: skip
    return written.model_dump(mode="json", exclude={"format", "output_activations"})


@pytest.mark.parametrize("name", EXPORTABLE)
def test_the_config_of_a_checkpoint_gives_every_name_back(name):
    group = GROUPS.validate_python({"group_0": config_group(name)})["group_0"]
    assert scheme_name(group.weights, group.input_activations) == name


@pytest.mark.parametrize("name", EXPORTABLE)
def test_the_layout_is_the_one_that_the_library_would_choose(name):
    scheme = QuantizationScheme.model_validate(config_group(name))
    assert infer_module_format(torch.nn.Linear, scheme).value == layout(parse_scheme(name))


def test_what_the_library_has_no_layout_for_is_known():
    assert set(NOT) >= {
        "W4A16_g32_fzp", "W4A16_g64_fzp", "W4A16_g128_fzp", "W8A16_e5m2", "W8A16_e3m4",
        "W6A16_fp6", "W6A16_e3m2", "W4A16_fp4", "W4A16_fp4_g128", "W4A8_fp4_g128",
        *(f"MX{kind}{a16}" for kind in ("E3M2", "E5M2", "INT4", "INT8") for a16 in ("", "A16")),
    }  # fmt: skip
    for name in ("W4A16_tensor", "MXFP4A16_g64", "MXFP4A16_row", "MXFP8_even"):
        assert not exportable(name)
    assert exportable("MXFP4A16_even")  # a rule for weights leaves no trace in what is stored


@pytest.mark.parametrize(
    ("preset", "name"),
    [
        ("FP8", "W8A8_fp8_tensor_static"), ("FP8_DYNAMIC", "W8A8_fp8"),
        ("FP8_BLOCK", "W8A8_fp8_block"), ("NVFP4", "NVFP4"), ("NVFP4A16", "NVFP4A16"),
        ("MXFP4", "MXFP4"), ("MXFP4A16", "MXFP4A16"), ("MXFP6A16", "MXFP6A16"),
        ("MXFP8", "MXFP8"), ("MXFP8A16", "MXFP8A16"), ("W8A8", "W8A8"),
        ("W4A16", "W4A16_g128"), ("W4A16_ASYM", "W4A16_g128_asym"),
    ],
)  # fmt: skip
def test_the_presets_of_the_library_are_these_schemes(preset, name):
    scheme = preset_name_to_scheme(preset, ["Linear"]).model_dump(mode="json")
    group = GROUPS.validate_python({"group_0": scheme})["group_0"]
    assert scheme_name(group.weights, group.input_activations) == name


def test_numbers_without_a_scheme_are_refused():
    for weights, inputs in [
        (Numbers(8, "float", strategy="group", group_size=64), Numbers(4, "int", strategy="token")),
        (Numbers(4, "float", strategy="group", group_size=64), None),
        (Numbers(8, "float", strategy="block", block_structure=[64, 64]), None),
        (Numbers(4, "float", strategy="tensor_group", group_size=32), None),
        (Numbers(9, "int", strategy="channel"), None),
    ]:
        with pytest.raises(UnsupportedError, match="no scheme with"):
            scheme_name(weights, inputs)


floats = st.builds(
    lambda grid, a, size, static: f"W{grid.bits}A{a}_{short(grid.name)}{size}{static * (a == 8)}",
    st.sampled_from([grid for name, grid in GRIDS.items() if name[0] == "e" and name[2] == "m"]),
    st.sampled_from([8, 16]),
    st.sampled_from(["", "_tensor", "_block"]) | st.integers(1, 9999).map("_g{}".format),
    st.sampled_from(["", "_static"]),
)
microscaling = st.builds(
    lambda element, a16, size, rule: f"MX{element}{a16}{size}{rule}",
    st.sampled_from(["FP4", "FP6", "FP8", "E5M2", "E3M2", "E3M4", "E1M2", "INT2", "INT4", "INT8"]),
    st.sampled_from(["", "A16"]),
    st.sampled_from(["", "_row", "_tensor", "_g16", "_g64", "_g512"]),
    st.sampled_from(["", "_even", "_rceil", "_msfp"]),
)


def short(grid: str) -> str:
    return {long: name for name, long in FLOATS.items()}.get(grid, grid)


@given(name=floats)
def test_a_name_of_floats_says_the_format(name):
    scheme = parse_scheme(name, torch.bfloat16)
    format, activation = scheme.weight, scheme.activation
    size = {(128, 128): "_block", (None, None): "_tensor"}.get(
        (format.group_size, format.group_rows), f"_g{format.group_size}" * bool(format.group_size)
    )
    width = 16 if activation is None else 8
    static = "_static" if activation is not None and not activation.dynamic else ""
    said = f"W{format.grid.bits}A{width}_{short(format.grid.name)}{size}{static}"
    assert scheme.name == name == said and format.range == "reach"
    assert format.scale is (torch.float32 if format.grid.bits == 8 else torch.bfloat16)
    assert activation is None or activation.format.grid.name == "e4m3"


@given(name=microscaling)
def test_a_name_of_microscaling_says_the_format(name):
    scheme = parse_scheme(name)
    format, activation = scheme.weight, scheme.activation
    grid = short(format.grid.name).upper()
    sizes = {(None, 1): "_row", (None, None): "_tensor", (32, 1): ""}
    size = sizes.get((format.group_size, format.group_rows), f"_g{format.group_size}")
    rule = "" if format.range == "ocp" else f"_{format.range}"
    assert scheme.name == name == f"MX{grid}{'A16' if activation is None else ''}{size}{rule}"
    assert format.scale is E8M0
    if activation is not None:  # as the weight, but no two tokens share a scale
        assert activation.dynamic and activation.format.group_rows == 1
        assert activation.format.group_size == format.group_size


@pytest.mark.parametrize(
    "name",
    [
        "W4A16_g0",
        "W1A16",
        "W9A16",
        "W4A9",
        "w4a16",
        "W4A16_asym_g32",
        "W4A16_g32 ",
        "",
        "W4A16_g",
        "W4A16_fp8",
        "W8A16_fp8_static",
        "W8A16_e6m6",
        "W8A8_block",
        "MXFP5A16",
        "MXFP4A16_ocp",
        "MXFP4A16_g32",
        "MXINT9A16",
        "NVFP4_g32",
        "NVFP4A8",
        "W16A16_g32",
    ],
)
def test_a_name_that_is_no_scheme_is_refused(name):
    with pytest.raises(UnknownNameError, match="unknown scheme"):
        parse_scheme(name)


def test_a_typo_names_the_nearest_scheme():
    for typo, meant in [
        ("W4A16_128", "W4A16_g128"), ("W8A8_f8", "W8A8_fp8"), ("W8A16_e4m3", "W8A16_fp8"),
        ("W8A8_e4m3_block", "W8A8_fp8_block"), ("MXFP4_A16", "MXFP4A16"), ("NVFP4_A16", "NVFP4A16"),
        ("W4A16_fp8", "W8A16_fp8"), ("MXFP4A16_g32", "MXFP4A16"),
    ]:  # fmt: skip
        with pytest.raises(UnknownNameError, match=f"did you mean '{meant}'"):
            parse_scheme(typo)


def test_w8a8_says_how_the_input_is_rounded():
    dynamic, static = parse_scheme("W8A8").activation, parse_scheme("W8A8_static").activation
    assert dynamic.dynamic and dynamic.format.group_rows == 1  # a scale for each token
    assert not static.dynamic and static.format.group_rows is None  # one for the tensor
    block = parse_scheme("W8A8_fp8_block").activation
    assert block.dynamic and (block.format.group_rows, block.format.group_size) == (1, 128)


@pytest.mark.parametrize(("name", "weight", "inputs"), [
    ("W4A8_g128", "W4A16_g128", "W8A8"), ("W3A6_g64_asym_static", "W3A16_g64_asym", "W6A6_static"),
    ("W4A4", "W4A16", "W8A4"), ("W8A8_g128", "W8A16_g128", "W8A8"),
])  # fmt: skip
def test_integers_of_both_kinds_are_named_apart(name, weight, inputs):
    scheme = parse_scheme(name)
    assert scheme.weight == parse_scheme(weight).weight
    assert scheme.activation == parse_scheme(inputs).activation
    assert not exportable(name)  # readers of compressed-tensors know int8 rows


def test_inputs_of_16_bits_have_no_scale():
    with pytest.raises(UnknownNameError, match="did you mean"):
        parse_scheme("W4A16_g128_static")


def test_nvfp4_inputs_have_one_fixed_scale_above_dynamic_ones():
    activation = parse_scheme("NVFP4").activation
    assert not activation.dynamic and activation.format == parse_scheme("NVFP4").weight
    assert activation.format.scale.groups(7, 16) == (1, 1)
