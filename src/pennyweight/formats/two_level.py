"""Scales and zero points that are quantized themselves: SpQR's two levels, QLoRA's double
quantization.

    W<bits>A16_g<n>_bilevel   scale and zero point of a group in 3 bits each, 16 groups of a row
                              sharing a second scale and zero point (SpQR: Dettmers et al. 2023,
                              arXiv:2306.03078, section 3.1)
    W<bits>A16_g<n>_dq        scale of a group in 8 bits, the groups of a row sharing float32 scale
                              and offset (QLoRA: Dettmers et al. 2023, arXiv:2305.14314, section 3)

Differences. SpQR's second level runs over 16 output rows and QLoRA's over 256 scales of the
flattened tensor; here both stay within a row, so that rows can be solved one without the other.
QLoRA's 8-bit scales are floats around their mean; here they are integers from the least to the
largest, with the same number of bytes.
"""

import re

import torch

from pennyweight.core import Format, Scheme
from pennyweight.formats.base import GRIDS

SECOND_GROUP = 16  # groups of weights that share a second level, as in SpQR
NAME = re.compile(r"W(?P<bits>[2-8])A16_g(?P<group>[1-9]\d{0,5})_(?P<kind>bilevel|dq)")


def bilevel(bits: int, group_size: int, dtype: torch.dtype = torch.float16) -> Format:
    """bits + (3 + 3) / group_size + 64 / (16 group_size) bits per weight, and padding."""
    level = Format(
        grid=GRIDS["int3"], group_size=SECOND_GROUP, scale=dtype, zero_point=dtype, range="span"
    )
    return Format(grid=GRIDS[f"int{bits}"], group_size=group_size, scale=level, zero_point=level)


def double_quantized(bits: int, group_size: int) -> Format:
    """bits + 8 / group_size + 64 / in_features bits per weight, and padding; symmetric."""
    level = Format(grid=GRIDS["int8"], scale=torch.float32, zero_point=torch.float32, range="span")
    return Format(grid=GRIDS[f"int{bits}"], group_size=group_size, scale=level)


def scheme(match: re.Match[str], dtype: torch.dtype) -> Scheme:
    bits, group_size = int(match["bits"]), int(match["group"])
    if match["kind"] == "dq":
        return Scheme(name=match[0], weight=double_quantized(bits, group_size))
    return Scheme(name=match[0], weight=bilevel(bits, group_size, dtype))
