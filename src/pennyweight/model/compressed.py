"""A compressed-tensors checkpoint read as if its weights were dense."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from pennyweight.core import CheckpointError, QTensor, Scheme, UnsupportedError
from pennyweight.formats.compressed_tensors import PACKED, decode, layout, parts
from pennyweight.formats.schemes import parse_scheme
from pennyweight.model.checkpoint import Checkpoint, TensorInfo

PARTS = ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "input_scale")


@dataclass(frozen=True)
class Numbers:
    """What we read of the library's QuantizationArgs."""

    num_bits: int
    type: str
    symmetric: bool = True
    strategy: str | None = None
    group_size: int | None = None
    dynamic: bool | str = False


@dataclass(frozen=True)
class SchemeGroup:
    """What we read of one of its config groups: who is meant, and by which numbers."""

    targets: list[str]
    weights: Numbers
    input_activations: Numbers | None = None


GROUPS = TypeAdapter(dict[str, SchemeGroup])


@dataclass(frozen=True)
class CompressedCheckpoint(Checkpoint):
    """`tensors` holds a dense `X.weight` for every quantized linear X; `read` dequantizes it."""

    stored: dict[str, TensorInfo] = field(default_factory=dict)  # what is in the files
    schemes: dict[str, Scheme] = field(default_factory=dict)  # of each quantized linear

    @classmethod
    def open(cls, path: str | Path) -> CompressedCheckpoint:
        files = Checkpoint.open(path)
        groups = _groups(files)
        linears = [
            k.removesuffix(".weight_scale") for k in files.tensors if k.endswith(".weight_scale")
        ]
        schemes = {name: _scheme_of(name, groups, files) for name in linears}
        tensors = {
            name: info
            for name, info in files.tensors.items()
            if not (name.rpartition(".")[0] in schemes and name.rpartition(".")[2] in PARTS)
        }
        config = {k: v for k, v in files.config.items() if k != "quantization_config"}
        view = cls(files.path, config, tensors, files.tensors, schemes)
        for name in linears:
            tensors[f"{name}.weight"] = view._dense_info(name)
        return view

    def _dense_info(self, name: str) -> TensorInfo:
        scale = self.stored[f"{name}.weight_scale"]
        if layout(self.schemes[name]) == PACKED:
            shape = tuple(self._part(name, "weight_shape").tolist())
        else:
            shape = self._stored_info(name, "weight").shape
        self._check_parts(name, shape)
        return replace(scale, name=f"{name}.weight", shape=shape, packed=True)

    def _check_parts(self, name: str, shape: tuple[int, ...]) -> None:
        if len(shape) != 2 or min(shape) < 1:
            raise CheckpointError(f"{self.path}: {name}: shape {list(shape)} is not [out, in]")
        for part, expected in parts(self.schemes[name], (shape[0], shape[1])).items():
            found = self._stored_info(name, part)
            if (found.shape, found.dtype) != (expected.shape, expected.dtype):
                raise CheckpointError(
                    f"{found.file}: {found.name}: found {found.dtype} {list(found.shape)}, "
                    f"{self.schemes[name].name} of config.json expects {expected.dtype} "
                    f"{list(expected.shape)}"
                )

    def _stored_info(self, name: str, part: str) -> TensorInfo:
        if f"{name}.{part}" not in self.stored:
            raise CheckpointError(
                f"{self.path}: {name}.{part} is missing, which {self.schemes[name].name} of "
                "config.json needs"
            )
        return self.stored[f"{name}.{part}"]

    def _part(self, name: str, part: str) -> Tensor:
        self._stored_info(name, part)
        return Checkpoint(self.path, self.config, self.stored).read(f"{name}.{part}")

    def shape(self, name: str) -> tuple[int, int]:
        """[out, in] of linear `name`."""
        rows, cols = self.tensors[f"{name}.weight"].shape
        return rows, cols

    def qtensor(self, name: str) -> QTensor:
        """The stored codes and scales of linear `name`."""
        parts = [*PARTS, "weight"]
        stored = {part: self._part(name, part) for part in parts if f"{name}.{part}" in self.stored}
        return decode(stored, self.schemes[name])

    def input_scale(self, name: str) -> Tensor | None:
        """[1, 1], of a static activation format."""
        if f"{name}.input_scale" not in self.stored:
            return None
        return self._part(name, "input_scale").float().view(1, 1)

    def read(self, name: str) -> Tensor:
        linear = name.removesuffix(".weight")
        if linear in self.schemes and name != linear:
            return self.qtensor(linear).dequantize()
        return super().read(name)


def is_compressed(checkpoint: Checkpoint) -> bool:
    config = checkpoint.config.get("quantization_config")
    return isinstance(config, dict) and config.get("quant_method") == "compressed-tensors"


def _groups(files: Checkpoint) -> list[SchemeGroup]:
    if not is_compressed(files):
        raise UnsupportedError(f"{files.path}: not a compressed-tensors checkpoint")
    try:
        config = files.config["quantization_config"]
        return list(GROUPS.validate_python(config.get("config_groups")).values())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, ("config_groups", *first["loc"])))
        raise CheckpointError(
            f"{files.path}: quantization_config of config.json: {place}: {first['msg']}"
        ) from None


def _scheme_of(name: str, groups: list[SchemeGroup], files: Checkpoint) -> Scheme:
    """The scheme of the group whose targets name this linear; class names match every linear."""
    for group in groups:
        for target in group.targets:
            if target in (name, "Linear") or _matches(target, name, files.path):
                dtype = files.tensors[f"{name}.weight_scale"].dtype
                if not dtype.is_floating_point:
                    raise UnsupportedError(f"{files.path}: {name}: scales of {dtype}")
                return parse_scheme(_scheme_name(group, files.path), dtype)
    raise CheckpointError(f"{files.path}: {name} has a scale but no group of the config names it")


def _matches(target: str, name: str, path: Path) -> bool:
    regex = target.removeprefix("re:")
    try:
        return regex != target and re.match(regex, name) is not None
    except (re.error, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{path}: target {target!r:.80} of config.json: {error}") from None


def _scheme_name(group: SchemeGroup, path: Path) -> str:
    weights, inputs = group.weights, group.input_activations
    if weights.type != "int" or (inputs and (inputs.type, inputs.num_bits) != ("int", 8)):
        raise UnsupportedError(f"{path}: only integer schemes can be read so far, found {weights}")
    if inputs and not (inputs.symmetric and weights.symmetric and weights.strategy == "channel"):
        raise UnsupportedError(
            f"{path}: with 8-bit inputs only symmetric schemes with a scale per channel can be "
            f"read so far, found {weights} and {inputs}"
        )
    if inputs:
        return "W8A8" if inputs.dynamic else "W8A8_static"
    group_size = f"_g{weights.group_size}" if weights.strategy == "group" else ""
    return f"W{weights.num_bits}A16{group_size}{'' if weights.symmetric else '_asym'}"
