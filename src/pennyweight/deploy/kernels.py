"""Products that torch itself ships for the CPU, on weights that are packed as they want them.

    mm                            no scheme: the weight in bfloat16, float16 or float32
    _weight_int8pack_mm           int8 rows, one scale each; the input stays as it is
    _weight_int4pack_mm_for_cpu   int4 in groups of 32 to 256, with or without zero points; likewise
    _int_mm                       int8 rows and int8 input, whose scale is found as it passes

A scheme that none of them computes has no kernel here: nothing is computed in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from pennyweight.core import Format, FormatError, QTensor, Scheme, plain
from pennyweight.formats.ranges import top

Multiply = Callable[[Tensor], Tensor]
"""x [tokens, in] -> x @ weight^T [tokens, out], both in the dtype of the kernel."""

INT4_GROUPS = (32, 64, 128, 256)
INT4_ROWS = 16  # rows that the packing of int4 takes together


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One product of torch, and the schemes that it computes."""

    name: str
    takes: Callable[[Scheme], bool]
    pack: Callable[[QTensor, Scheme, torch.dtype, Tensor | None], Multiply]
    fault: Callable[[Format, tuple[int, int]], str | None] = lambda format, shape: None


def find_kernel(scheme: Scheme) -> Kernel | None:
    """The kernel that computes a scheme; None: torch has none for the CPU."""
    return next((kernel for kernel in KERNELS if kernel.takes(scheme)), None)


def shape_fault(kernel: Kernel, scheme: Scheme, shape: tuple[int, int]) -> str | None:
    """Why a weight [out, in] of this shape cannot be stored or multiplied so; None: it can."""
    try:
        scheme.weight.groups(*shape)
    except FormatError as error:
        return str(error)
    return kernel.fault(scheme.weight, shape)


def dense(weight: Float[Tensor, "out in"], dtype: torch.dtype) -> Multiply:
    """What an untouched linear does."""
    across = weight.to(dtype).t()
    return lambda x: torch.mm(x, across)


def _plain_integers(format: Format, name: str) -> bool:
    """Integers whose scales are stored plainly, and no row shares one with another."""
    whole = isinstance(format.scale, torch.dtype) and format.table is None
    return whole and format.grid.name == name and format.group_rows == 1


def _takes_int8(scheme: Scheme) -> bool:
    format = scheme.weight
    return (
        scheme.activation is None
        and _plain_integers(format, "int8")
        and format.group_size is None
        and format.symmetric
    )


def _pack_int8(
    weight: QTensor, scheme: Scheme, dtype: torch.dtype, input_scale: Tensor | None
) -> Multiply:
    codes, scales = _signed(weight), plain(weight.scale).flatten().to(dtype)
    return lambda x: torch.ops.aten._weight_int8pack_mm(x, codes, scales)


def _takes_int4(scheme: Scheme) -> bool:
    format = scheme.weight
    zero = format.zero_point is None or isinstance(format.zero_point, torch.dtype)
    return scheme.activation is None and zero and _plain_integers(format, "int4")


def _int4_fault(format: Format, shape: tuple[int, int]) -> str | None:
    group = format.group_size or shape[1]
    if group not in INT4_GROUPS:
        return f"groups of {group}; the kernel has {', '.join(map(str, INT4_GROUPS))}"
    if shape[0] % INT4_ROWS:
        return f"{shape[0]} rows; the kernel takes multiples of {INT4_ROWS}"
    return None


def _pack_int4(
    weight: QTensor, scheme: Scheme, dtype: torch.dtype, input_scale: Tensor | None
) -> Multiply:
    """The kernel's weight is (code - 8) * scale + zero, where ours is scale * (code - zero)."""
    scale, middle = plain(weight.scale), weight.format.grid.middle
    zero = torch.zeros_like(scale) if weight.zero_point is None else plain(weight.zero_point)
    shift = zero if weight.zero_point is None else scale * (middle - zero)
    both = torch.stack([scale, shift], -1).transpose(0, 1).to(dtype).contiguous()
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(weight.codes.int(), 1)
    group = weight.shape[1] // scale.shape[1]
    return lambda x: torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, group, both)


def _takes_int8_inputs(scheme: Scheme) -> bool:
    format, activation = scheme.weight, scheme.activation
    if activation is None or activation.format.grid.name != "int8" or activation.format.group_size:
        return False
    rows = format.group_rows in (1, None) and format.group_size is None
    plainly = isinstance(format.scale, torch.dtype) and format.table is None
    return rows and plainly and format.grid.name == "int8" and format.symmetric


def _pack_int8_inputs(
    weight: QTensor, scheme: Scheme, dtype: torch.dtype, input_scale: Tensor | None
) -> Multiply:
    """input_scale: [1, 1] of a static scheme; None: the scale of each token is found."""
    across, scale = _signed(weight).t(), plain(weight.scale).t()  # [in, out], [1, out or 1]
    assert scheme.activation is not None, "this kernel takes no other"
    grid = scheme.activation.format.grid
    most, low, high = top(grid), grid.lowest - grid.middle, grid.highest - grid.middle
    tiny = torch.finfo(torch.float32).smallest_normal  # of a token of zeros

    def multiply(x: Tensor) -> Tensor:
        wide = x.float()
        step = input_scale
        if step is None:
            step = (wide.abs().amax(1, keepdim=True) / most).clamp_(min=tiny)
        codes = (wide / step).round_().clamp_(low, high).to(torch.int8)
        return (torch._int_mm(codes, across) * (step * scale)).to(dtype)

    return multiply


def _signed(weight: QTensor) -> Int8[Tensor, "out in"]:
    """Codes counted from the middle of the grid."""
    return (weight.codes.to(torch.int16) - int(weight.format.grid.middle)).to(torch.int8)


KERNELS = (
    Kernel(name="_weight_int8pack_mm", takes=_takes_int8, pack=_pack_int8),
    Kernel(
        name="_weight_int4pack_mm_for_cpu", takes=_takes_int4, pack=_pack_int4, fault=_int4_fault
    ),
    Kernel(name="_int_mm", takes=_takes_int8_inputs, pack=_pack_int8_inputs),
)
