"""Formats of every kind that the formula can express, and tensors to store in them."""

import torch
from hypothesis import strategies as st

from pennyweight.core import Format
from pennyweight.formats import GRIDS
from pennyweight.formats.schemes import parse_scheme

NAMES = (
    "W2A16_g32",
    "W3A16_g64_asym",
    "W4A16",
    "W4A16_g32_asym",
    "W5A16_g32",
    "W8A16_asym",
    "W8A8",
)


def formats() -> dict[str, Format]:
    """Name -> Format: flat ones, and recursive ones."""
    flat = {name: parse_scheme(name).weight for name in NAMES}
    flat["bfloat16 scale"] = parse_scheme("W4A16_g32_asym", torch.bfloat16).weight
    flat["float zero point"] = Format(
        grid=GRIDS["int4"], group_size=32, scale=torch.float16, zero_point=torch.float16
    )
    return flat | recursive()


def recursive() -> dict[str, Format]:
    scales = Format(grid=GRIDS["int8"], scale=torch.float32)
    zeros = Format(grid=GRIDS["int8"], scale=torch.float32, zero_point=torch.float32)
    deep = Format(grid=GRIDS["int6"], group_size=2, scale=scales)
    int4 = {"grid": GRIDS["int4"], "group_size": 16}
    return {
        "quantized scale": Format(**int4, scale=scales),
        "quantized scale, asym": Format(**int4, scale=scales, zero_point=torch.uint8),
        "quantized zero point": Format(**int4, scale=torch.float16, zero_point=zeros),
        "both": Format(**int4, scale=scales, zero_point=zeros),
        "three levels": Format(**int4, scale=deep),
    }


def weights(rows: int, cols: int, seed: int, *, size: float = 0.02, shift: float = 0.0):
    generator = torch.Generator().manual_seed(seed)
    return size * (torch.randn(rows, cols, generator=generator) + shift)


# Sizes from far below float16's smallest to near its largest; one-sided, centred.
sizes = st.sampled_from([0.0, 1e-30, 1e-9, 1e-5, 0.02, 1.0, 1e4])
shifts = st.sampled_from([-10.0, -1.0, 0.0, 1.0, 10.0])
