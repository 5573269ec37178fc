"""Formats of every kind that the formula can express, and tensors to store in them."""

import torch
from hypothesis import strategies as st

from pennyweight.core import Format
from pennyweight.formats import GRIDS
from pennyweight.formats.dual_grained import dual_grained
from pennyweight.formats.schemes import parse_scheme
from pennyweight.formats.two_level import double_quantized

NAMES = (
    "W2A16_g32",
    "W3A16_g64_asym",
    "W4A16",
    "W4A16_g32_asym",
    "W5A16_g32",
    "W8A16_asym",
    "W8A8",
    "W4A8_g32_asym",
    "W4A16_tensor",
    "W8A16_fp8",
    "W8A16_e5m2_tensor",
    "W6A16_e3m2_g32",
    "W4A16_fp4_g16",
    "MXFP4A16",
    "MXFP6A16_even",
    "MXFP8A16_row_rceil",
    "MXINT4A16_g16",
    "MXE1M2A16_g64_msfp",
    "MXINT8A16_tensor",
    "NVFP4A16",
    "W4A16_nf4_g32",
    "W4A16_fp4_g16_shift",
)


def formats() -> dict[str, Format]:
    """Name -> Format: flat ones, and recursive ones."""
    flat = {name: parse_scheme(name).weight for name in NAMES}
    flat["bfloat16 scale"] = parse_scheme("W4A16_g32_asym", torch.bfloat16).weight
    flat["float zero point"] = parse_scheme("W4A16_g32_fzp").weight
    return flat | recursive()


def looked_up() -> dict[str, Format]:
    """Those without a scale, or without a value for zero."""
    names = ("W3A16_table", "W4A16_higgs_g32", "W2A16_higgs1_g64")
    return {name: parse_scheme(name).weight for name in names}


def recursive() -> dict[str, Format]:
    scales = Format(grid=GRIDS["int8"], scale=torch.float32)
    zeros = Format(grid=GRIDS["int8"], scale=torch.float32, zero_point=torch.float32)
    deep = Format(grid=GRIDS["int6"], group_size=2, scale=scales)
    span = Format(
        grid=GRIDS["int3"], group_size=4, scale=torch.float16, zero_point=torch.float16,
        range="span",
    )  # fmt: skip
    int4 = {"grid": GRIDS["int4"], "group_size": 16}
    return {
        "quantized scale": Format(**int4, scale=scales),
        "quantized scale, asym": Format(**int4, scale=scales, zero_point=torch.uint8),
        "quantized zero point": Format(**int4, scale=torch.float16, zero_point=zeros),
        "both": Format(**int4, scale=scales, zero_point=zeros),
        "three levels": Format(**int4, scale=deep),
        "bilevel": Format(**int4, scale=span, zero_point=span),
        "double quantized": double_quantized(4, 16),
        "dual-grained": dual_grained(32),
        "dual-grained rows": dual_grained(None),
    }


def weights(rows: int, cols: int, seed: int, *, size: float = 0.02, shift: float = 0.0):
    generator = torch.Generator().manual_seed(seed)
    return size * (torch.randn(rows, cols, generator=generator) + shift)


# Sizes from far below float16's smallest to near its largest; one-sided, centred.
sizes = st.sampled_from([0.0, 1e-30, 1e-9, 1e-5, 0.02, 1.0, 1e4])
shifts = st.sampled_from([-10.0, -1.0, 0.0, 1.0, 10.0])
