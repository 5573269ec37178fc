"""A checkpoint in our own packed layout, read as if its weights were dense."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from pennyweight.core import (
    CheckpointError,
    FormatError,
    Quantized,
    Scheme,
    UnknownNameError,
    UnsupportedError,
)
from pennyweight.core.fields import first_fault
from pennyweight.formats.corrections import unpack_corrections
from pennyweight.formats.schemes import parse_scheme
from pennyweight.formats.storage import parts_of, unpack
from pennyweight.model.checkpoint import Checkpoint, TensorInfo

METHOD, VERSION = "pennyweight", 2
SCALE_DTYPES = {"float16", "bfloat16", "float32"}


@dataclass(frozen=True)
class Layout:
    """What config.json says of a packed checkpoint."""

    version: int
    scale_dtype: str  # of scales, where the scheme leaves it open
    schemes: dict[str, list[str]]  # scheme -> linears
    shapes: dict[str, tuple[int, int]]  # linear -> out, in


LAYOUT = TypeAdapter(Layout)


@dataclass(frozen=True)
class PackedCheckpoint(Checkpoint):
    """`tensors` holds a dense `X.weight` for every quantized linear X; `read` dequantizes it."""

    stored: dict[str, TensorInfo] = field(default_factory=dict)  # what is in the files
    schemes: dict[str, Scheme] = field(default_factory=dict)  # of each quantized linear
    dtype: torch.dtype = torch.float32  # of the source weights

    @classmethod
    def open(cls, path: str | Path) -> PackedCheckpoint:
        """Raises CheckpointError if config.json and the tensors do not belong together."""
        files = Checkpoint.open(path)
        layout = _layout(files)
        dtype = getattr(torch, layout.scale_dtype)
        schemes = {
            linear: _scheme(name, dtype, files)
            for name, linears in layout.schemes.items()
            for linear in linears
        }
        config = {k: v for k, v in files.config.items() if k != "quantization_config"}
        view = cls(files.path, config, {}, files.tensors, schemes, dtype)
        owned = {part: name for name in schemes for part in view.parts_of(name)}
        view.tensors.update({k: info for k, info in files.tensors.items() if k not in owned})
        for name in schemes:
            view.tensors[f"{name}.weight"] = view._dense_info(name, layout.shapes.get(name))
        return view

    def parts_of(self, name: str) -> list[str]:
        """The stored tensors of linear `name`."""
        return self._by_linear.get(name, [])

    @cached_property
    def _by_linear(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for key in self.stored:
            linear, weight, _ = key.partition(".weight.")
            if weight and linear in self.schemes:
                found.setdefault(linear, []).append(key)
        return found

    def _dense_info(self, name: str, shape: tuple[int, int] | None) -> TensorInfo:
        parts = self.parts_of(name)
        if shape is None or not parts:
            what = "no shape in config.json" if shape is None else "no tensor in the files"
            raise CheckpointError(f"{self.path}: {name}: has a scheme but {what}")
        if min(shape) < 1:
            raise CheckpointError(f"{self.path}: {name}: shape {list(shape)} is not [out, in]")
        self._check_parts(name, shape)
        first = self.stored[parts[0]]
        return replace(first, name=f"{name}.weight", shape=shape, dtype=self.dtype, packed=True)

    def _check_parts(self, name: str, shape: tuple[int, int]) -> None:
        scheme = self.schemes[name]
        for part, (dtype, size) in parts_of(scheme.weight, shape).items():
            info = self.stored.get(f"{name}.weight.{part}")
            if info is None:
                raise CheckpointError(
                    f"{self.path}: {name}.weight.{part} is missing, which {scheme.name} needs"
                )
            if (info.dtype, info.shape) != (dtype, size):
                raise CheckpointError(
                    f"{info.file}: {info.name}: found {info.dtype} {list(info.shape)}; "
                    f"{scheme.name} of a {list(shape)} weight has {dtype} {list(size)}"
                )

    def shape(self, name: str) -> tuple[int, int]:
        """[out, in] of linear `name`."""
        rows, cols = self.tensors[f"{name}.weight"].shape
        return rows, cols

    def quantized(self, name: str) -> Quantized:
        """Linear `name` as it was computed. Raises CheckpointError if a correction does not fit."""
        prefix, files = f"{name}.weight.", Checkpoint(self.path, self.config, self.stored)
        stored = {key.removeprefix(prefix): files.read(key) for key in self.parts_of(name)}
        shape = self.shape(name)
        weight = unpack(stored, self.schemes[name].weight, shape)
        try:
            return Quantized(weight=weight, corrections=unpack_corrections(stored, shape))
        except KeyError as error:
            raise CheckpointError(f"{self.path}: {prefix}{error.args[0]} is missing") from None
        except (RuntimeError, IndexError, FormatError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(
                f"{self.path}: {name}: its corrections do not fit a {list(shape)} weight: {reason}"
            ) from None

    def input_scale(self, name: str) -> Tensor | None:
        """[1, 1], of a static activation format."""
        key = f"{name}.weight.input_scale"
        if key not in self.stored:
            return None
        return Checkpoint(self.path, self.config, self.stored).read(key).float().view(1, 1)

    def read(self, name: str) -> Tensor:
        linear = name.removesuffix(".weight")
        if linear in self.schemes and name != linear:
            return self.quantized(linear).dequantize()
        return super().read(name)


def _layout(files: Checkpoint) -> Layout:
    if files.quant_method != METHOD:
        raise UnsupportedError(f"{files.path}: not a checkpoint in the packed layout")
    where = f"{files.path}: quantization_config of config.json"
    try:
        layout = LAYOUT.validate_python(files.config["quantization_config"])
    except ValidationError as error:
        fault = first_fault(error)
        raise CheckpointError(f"{where}: {fault.place}: {fault.message}") from None
    if layout.version != VERSION:
        raise UnsupportedError(
            f"{where}: version {layout.version}; this Pennyweight reads {VERSION}"
        )
    if layout.scale_dtype not in SCALE_DTYPES:
        raise CheckpointError(f"{where}: scale_dtype {layout.scale_dtype!r:.40} is none of "
                              f"{', '.join(sorted(SCALE_DTYPES))}")  # fmt: skip
    return layout


def _scheme(name: str, dtype: torch.dtype, files: Checkpoint) -> Scheme:
    try:
        return parse_scheme(name, dtype)
    except UnknownNameError as error:
        raise CheckpointError(f"{files.path}: config.json: {error}") from None
