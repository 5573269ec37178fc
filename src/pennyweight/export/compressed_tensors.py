"""A compressed-tensors checkpoint, which vLLM, SGLang and transformers load."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import compressed_tensors
from compressed_tensors.config import CompressionFormat
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    QuantizationStatus,
)

from pennyweight.core import ActivationFormat, Format, FormatError
from pennyweight.export.base import TARGETS, Linear, Part
from pennyweight.formats.compressed_config import Numbers, activation_numbers, weight_numbers
from pennyweight.formats.compressed_tensors import layout, parts


class CompressedTensors:
    about = "the compressed-tensors layout of vLLM, SGLang and transformers"
    serves = "vLLM, SGLang, transformers"
    exact = True

    def parts(self, linear: Linear) -> dict[str, Part]:
        if linear.corrected:
            raise FormatError(
                f"{linear.name}: compressed-tensors has no place for weights kept beside the codes "
                "or for a correction of low rank; use the target packed or dense"
            )
        found = parts(linear.scheme, linear.shape)
        made = {
            suffix: Part(part.dtype, part.shape, lambda part=part: part.make(linear.read))
            for suffix, part in found.items()
        }
        if linear.transposed and "weight" in made:
            # Engines turn every `.weight` of a Conv1D when they load it, quantized or not.
            made["weight"] = _turned(made["weight"])
        return made

    def config(self, linears: Sequence[Linear], ignore: list[str]) -> dict[str, Any]:
        return quantization_config(linears, ignore)


def _turned(part: Part) -> Part:
    return Part(part.dtype, part.shape[::-1], lambda: part.make().T.contiguous())


def quantization_config(linears: Sequence[Linear], ignore: list[str]) -> dict[str, Any]:
    """The `quantization_config` of config.json, built and validated by the library's own
    classes."""
    by_scheme: dict[str, list[Linear]] = {}
    for linear in linears:
        by_scheme.setdefault(linear.scheme.name, []).append(linear)
    uniform = len(by_scheme) == 1
    groups, layouts = {}, set()
    for number, members in enumerate(by_scheme.values()):
        scheme = members[0].scheme
        layouts.add(layout(scheme))
        named = [name for each in members if not uniform or each.is_head for name in each.names]
        groups[f"group_{number}"] = QuantizationScheme(
            targets=["Linear", *named] if uniform else named,
            weights=weight_args(scheme.weight),
            input_activations=activation_args(scheme.activation),
            format=CompressionFormat(layout(scheme)),
        )
    config = QuantizationConfig(
        config_groups=groups,
        format=layouts.pop() if len(layouts) == 1 else "mixed-precision",
        quantization_status=QuantizationStatus.COMPRESSED,
        ignore=ignore,
    )
    data = json.loads(config.model_dump_json())
    return data | {"version": compressed_tensors.__version__}


def weight_args(format: Format) -> QuantizationArgs:
    return QuantizationArgs.model_validate(_given(weight_numbers(format)))


def activation_args(activation: ActivationFormat | None) -> QuantizationArgs | None:
    numbers = activation_numbers(activation)
    return None if numbers is None else QuantizationArgs.model_validate(_given(numbers))


def _given(numbers: Numbers) -> dict[str, Any]:
    """Without what is not said: the library writes out whatever it was given."""
    return {key: value for key, value in asdict(numbers).items() if value is not None}


TARGETS.register("compressed-tensors")(CompressedTensors())
