"""A scheme as the numbers that compressed-tensors writes in config.json, and back to its name."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pennyweight.core import (
    ActivationFormat,
    Format,
    FormatError,
    UnknownNameError,
    UnsupportedError,
)
from pennyweight.formats.compressed_tensors import layout
from pennyweight.formats.schemes import E8M0, MX_GROUP, parse_scheme


@dataclass(frozen=True)
class Numbers:
    """What we write and read of the library's QuantizationArgs."""

    num_bits: int
    type: str
    symmetric: bool = True
    strategy: str | None = None
    group_size: int | None = None
    block_structure: list[int] | None = None
    dynamic: bool | str = False
    scale_dtype: str | None = None


def weight_numbers(format: Format) -> Numbers:
    recursive = isinstance(format.scale, Format)
    special = "torch.float8_e4m3fn" if recursive else "torch.uint8"
    numbers = Numbers(
        num_bits=format.grid.bits,
        type="int" if format.grid.name.startswith("int") else "float",
        symmetric=format.symmetric,
        scale_dtype=special if recursive or format.scale is E8M0 else None,
    )
    if format.group_rows is None:
        return replace(numbers, strategy="tensor")
    if format.group_size is None:
        return replace(numbers, strategy="channel")
    if format.group_rows > 1:
        block = [format.group_rows, format.group_size]
        return replace(numbers, strategy="block", block_structure=block)
    strategy = "tensor_group" if recursive else "group"
    return replace(numbers, strategy=strategy, group_size=format.group_size)


def activation_numbers(activation: ActivationFormat | None) -> Numbers | None:
    if activation is None:
        return None
    numbers = weight_numbers(activation.format)
    if numbers.strategy == "tensor_group":  # the levels below the tensor's scale are dynamic
        return replace(numbers, dynamic="local")
    strategy = "token" if numbers.strategy == "channel" else numbers.strategy
    return replace(numbers, strategy=strategy, dynamic=activation.dynamic)


def scheme_name(weights: Numbers, inputs: Numbers | None) -> str:
    """The scheme whose numbers these are. Raises UnsupportedError if there is none."""
    weights, inputs = _spelled_out(weights), inputs and _spelled_out(inputs)
    name = _guess(weights, inputs)
    try:
        scheme = parse_scheme(name)
        layout(scheme)
    except (UnknownNameError, FormatError):
        raise UnsupportedError(f"no scheme with {weights} and inputs {inputs}") from None
    expected = weight_numbers(scheme.weight), activation_numbers(scheme.activation)
    for found, wanted in zip((weights, inputs), expected, strict=True):
        if found is not None and wanted is not None:  # older files leave the scale's dtype out
            found = replace(found, scale_dtype=found.scale_dtype or wanted.scale_dtype)
        if found != wanted:
            raise UnsupportedError(
                f"no scheme with {found}; the nearest that can be read is {name} with {wanted}"
            )
    return name


def _spelled_out(numbers: Numbers) -> Numbers:
    """What the library infers where a file leaves it out; a group size of -1 is a channel."""
    size = numbers.group_size
    inferred = "tensor" if size is None else "channel" if size < 0 else "group"
    return replace(
        numbers, strategy=numbers.strategy or inferred,
        group_size=None if size is not None and size < 0 else size,
    )  # fmt: skip


def _guess(weights: Numbers, inputs: Numbers | None) -> str:
    a16 = "A16" if inputs is None else ""
    if weights.strategy == "tensor_group":
        return f"NVFP{weights.num_bits}{a16}"
    if weights.type == "float" and _is_microscaling(weights):
        return f"MXFP{weights.num_bits}{a16}"
    size = {"tensor": "_tensor", "block": "_block", "group": f"_g{weights.group_size}"}.get(
        weights.strategy or "", ""
    )
    kind = f"_fp{weights.num_bits}" if weights.type == "float" else ""
    static = "" if inputs is None or inputs.dynamic else "_static"
    width = 16 if inputs is None else inputs.num_bits
    asym = "" if weights.symmetric else "_asym"
    return f"W{weights.num_bits}A{width}{kind}{size}{asym}{static}"


def _is_microscaling(weights: Numbers) -> bool:
    """Groups of 32; those of 8 bits may also have ordinary scales, and then the file says so."""
    if (weights.strategy, weights.group_size) != ("group", MX_GROUP):
        return False
    return weights.num_bits < 8 or weights.scale_dtype == "torch.uint8"
