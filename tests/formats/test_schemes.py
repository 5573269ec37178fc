"""Names of schemes: they say everything, and what they say comes back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pennyweight.core import UnknownNameError
from pennyweight.export.compressed_tensors import activation_args, weight_args
from pennyweight.formats.schemes import COMMON, UNTOUCHED, parse_scheme
from pennyweight.model.compressed import GROUPS, _scheme_name

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


def test_the_config_of_a_checkpoint_gives_every_name_back(tmp_path):
    for name in set(COMMON) - {UNTOUCHED}:
        scheme = parse_scheme(name)
        inputs = activation_args(scheme.activation)
        group = {
            "targets": ["Linear"],
            "weights": weight_args(scheme.weight).model_dump(mode="json"),
            "input_activations": inputs and inputs.model_dump(mode="json"),
        }
        parsed = GROUPS.validate_python({"group_0": group})["group_0"]
        assert _scheme_name(parsed, tmp_path) == name


@pytest.mark.parametrize(
    "name",
    ["W4A16_g0", "W1A16", "W9A16", "W4A8", "w4a16", "W4A16_asym_g32", "W4A16_g32 ", "", "W4A16_g"],
)
def test_a_name_that_is_no_scheme_is_refused(name):
    with pytest.raises(UnknownNameError, match="unknown scheme"):
        parse_scheme(name)


def test_a_typo_names_the_nearest_scheme():
    with pytest.raises(UnknownNameError, match="did you mean 'W4A16_g128'"):
        parse_scheme("W4A16_128")


def test_w8a8_says_how_the_input_is_rounded():
    dynamic, static = parse_scheme("W8A8").activation, parse_scheme("W8A8_static").activation
    assert dynamic.dynamic and dynamic.format.group_rows == 1  # a scale for each token
    assert not static.dynamic and static.format.group_rows is None  # one for the tensor
