"""A compressed-tensors checkpoint read as if its weights were dense."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import regex
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from pennyweight.core import CheckpointError, QTensor, Scheme, UnsupportedError
from pennyweight.core.fields import first_fault
from pennyweight.formats.compressed_config import Numbers, scheme_name
from pennyweight.formats.compressed_tensors import (
    PACKED,
    Part,
    decode,
    decoded_dtype,
    layout,
    parts,
)
from pennyweight.formats.schemes import parse_scheme
from pennyweight.model.checkpoint import Checkpoint, TensorInfo

METHOD = "compressed-tensors"
PARTS = (
    "weight_packed", "weight_scale", "weight_global_scale", "weight_shape", "weight_zero_point",
    "input_scale", "input_global_scale",
)  # fmt: skip


@dataclass(frozen=True)
class SchemeGroup:
    """What we read of one of its config groups: who is meant, and by which numbers."""

    targets: list[str]
    weights: Numbers
    input_activations: Numbers | None = None


MATCH_SECONDS = 1.0  # a name has a hundred letters; this is enough for any but an endless match
SCALE_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
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
        scale, scheme, packed = self.stored[f"{name}.weight_scale"], self.schemes[name], True
        if layout(scheme) == PACKED:
            shape = tuple(self._part(name, "weight_shape").tolist())
        elif f"{name}.weight" in self.stored:
            shape, packed = self._stored_info(name, "weight").shape, False
        else:
            *rows, width = self._stored_info(name, "weight_packed").shape
            shape = (*rows, width * 8 // scheme.weight.grid.bits)
        self._check_parts(name, shape)
        dtype = decoded_dtype(scheme, scale.dtype)
        return replace(scale, name=f"{name}.weight", shape=shape, dtype=dtype, packed=packed)

    def _check_parts(self, name: str, shape: tuple[int, ...]) -> None:
        if len(shape) != 2 or min(shape) < 1:
            raise CheckpointError(f"{self.path}: {name}: shape {list(shape)} is not [out, in]")
        for part, expected in self._expected(name, shape[0], shape[1]).items():
            found = self._stored_info(name, part)
            if (found.shape, found.dtype) != (expected.shape, expected.dtype):
                raise CheckpointError(
                    f"{found.file}: {found.name}: found {found.dtype} {list(found.shape)}, "
                    f"{self.schemes[name].name} of config.json expects {expected.dtype} "
                    f"{list(expected.shape)}"
                )

    def _expected(self, name: str, rows: int, cols: int) -> dict[str, Part]:
        """The parts of a weight stored with this shape: [in, out] of a Conv1D in whole bytes."""
        scheme, found = self.schemes[name], self._stored_info(name, "weight_scale")
        if f"{name}.weight" in self.stored and rows != cols == found.shape[0]:
            turned = parts(scheme, (cols, rows))
            return turned | {"weight": replace(turned["weight"], shape=(rows, cols))}
        return parts(scheme, (rows, cols))

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

    def parts_of(self, name: str) -> list[str]:
        """The stored tensors of linear `name`."""
        return [f"{name}.{part}" for part in self._expected(name, *self.shape(name))]

    def shape(self, name: str) -> tuple[int, int]:
        """[out, in] of linear `name`; [in, out] of a Conv1D in whole bytes."""
        rows, cols = self.tensors[f"{name}.weight"].shape
        return rows, cols

    def qtensor(self, name: str, transposed: bool = False) -> QTensor:
        """The stored codes and scales of linear `name`; `transposed` if it is a Conv1D."""
        parts = [*PARTS, "weight"]
        stored = {part: self._part(name, part) for part in parts if f"{name}.{part}" in self.stored}
        if transposed and "weight" in stored:
            stored["weight"] = stored["weight"].T.contiguous()
        return decode(stored, self.schemes[name])

    def input_scale(self, name: str) -> Tensor | None:
        """[1, 1], of a static activation format."""
        if f"{name}.input_global_scale" in self.stored:
            return 1 / self._part(name, "input_global_scale").float().view(1, 1)
        if f"{name}.input_scale" not in self.stored:
            return None
        return self._part(name, "input_scale").float().view(1, 1)

    def read(self, name: str) -> Tensor:
        return self.read_turned(name, transposed=False)

    def read_turned(self, name: str, transposed: bool) -> Tensor:
        linear = name.removesuffix(".weight")
        if linear in self.schemes and name != linear:
            return self.qtensor(linear, transposed).dequantize()
        tensor = super().read(name)
        return tensor.T.contiguous() if transposed else tensor


def _groups(files: Checkpoint) -> list[SchemeGroup]:
    if files.quant_method != METHOD:
        raise UnsupportedError(f"{files.path}: not a compressed-tensors checkpoint")
    try:
        config = files.config["quantization_config"]
        return list(GROUPS.validate_python(config.get("config_groups")).values())
    except ValidationError as error:
        fault = first_fault(error)
        place = f"config_groups.{fault.place}".rstrip(".")
        raise CheckpointError(
            f"{files.path}: quantization_config of config.json: {place}: {fault.message}"
        ) from None


def _scheme_of(name: str, groups: list[SchemeGroup], files: Checkpoint) -> Scheme:
    """The scheme of the group whose targets name this linear; class names match every linear."""
    for group in groups:
        for target in group.targets:
            if target in (name, "Linear") or _matches(target, name, files.path):
                return _scheme(name, group, files)
    raise CheckpointError(f"{files.path}: {name} has a scale but no group of the config names it")


def _matches(target: str, name: str, path: Path) -> bool:
    pattern = target.removeprefix("re:")
    try:
        if pattern == target:
            return False
        return regex.match(pattern, name, timeout=MATCH_SECONDS) is not None
    except (regex.error, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{path}: target {target!r:.80} of config.json: {error}") from None
    except (TimeoutError, MemoryError):
        raise CheckpointError(
            f"{path}: target {target!r:.80} of config.json: came to no end on {name!r:.80}"
        ) from None


def _scheme(name: str, group: SchemeGroup, files: Checkpoint) -> Scheme:
    """Scales that the scheme stores in a dtype are in whatever dtype the file has them."""
    dtype = files.tensors[f"{name}.weight_scale"].dtype
    try:
        found = scheme_name(group.weights, group.input_activations)
    except UnsupportedError as error:
        raise UnsupportedError(f"{files.path}: {error}") from None
    scheme = parse_scheme(found, dtype if dtype in SCALE_DTYPES else torch.float32)
    if scheme.weight.scale not in SCALE_DTYPES:
        return scheme
    if dtype not in SCALE_DTYPES:
        raise UnsupportedError(f"{files.path}: {name}: scales of {dtype}")
    return replace(scheme, weight=replace(scheme.weight, scale=dtype))
