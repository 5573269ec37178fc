"""A Hugging Face checkpoint on disk: which tensors it holds, and reading one of them at a time.

Tensors are read with plain file reads at the offsets the header gives, not through a memory map: a
map keeps every page it touched resident, and the whole point is that the model is never in memory.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pennyweight.core import CheckpointError, UnsupportedError
from pennyweight.core.finite import is_finite

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
NAME_BYTES = 255  # longest file name of Linux file systems; asking for a longer one is an OSError
PROBE_BYTES = 4096  # read from both ends of every tensor for the fingerprint


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How a matrix is cut out of a stored one, which is `width` columns wide."""

    width: int
    column: int  # the first that belongs to it
    flipped: bool  # stored [in, out]


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """Where one tensor lies: bytes start .. stop of file, or what `cut` takes of these."""

    name: str
    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int
    packed: bool = False  # stands for packed tensors: always [out, in], decoded when it is read
    whole: TensorInfo | None = None  # the stored tensor that this is a part of
    cut: Cut | None = None

    @property
    def size_bytes(self) -> int:
        if self.cut is None:
            return self.stop - self.start
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Checkpoint:
    """A directory with config.json and safetensors files, opened and checked."""

    path: Path
    config: dict[str, Any]
    tensors: dict[str, TensorInfo]

    @classmethod
    def open(cls, path: str | Path) -> Checkpoint:
        """Read config, index and headers; no weights.

        Raises CheckpointError on a missing, truncated or contradictory file.
        """
        path = Path(path)
        if not path.is_dir():
            raise CheckpointError(f"{path}: no such model directory")
        config = read_json(path / "config.json")
        tensors: dict[str, TensorInfo] = {}
        for file, expected in _shards(path).items():
            header = read_header(file)
            _compare(file, expected, set(header))
            for name in expected if expected is not None else header:
                tensors[name] = header[name]
        if not tensors:
            raise CheckpointError(f"{path}: the checkpoint holds no tensor")
        return cls(path=path, config=config, tensors=tensors)

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def read(self, name: str) -> Tensor:
        """The tensor, in memory of its own."""
        info = self.tensors[name]
        data = bytearray(info.stop - info.start)
        with info.file.open("rb") as file:
            file.seek(info.start)
            if file.readinto(data) != len(data):
                raise CheckpointError(f"{info.file}: {name}: the file ends inside this tensor")
        if not data:
            return torch.empty(info.shape, dtype=info.dtype)
        values = torch.frombuffer(data, dtype=info.dtype)
        return values.view(info.shape) if info.cut is None else _cut(values, info.shape, info.cut)

    def read_turned(self, name: str, transposed: bool) -> Tensor:
        """As `read`, but [out, in] of a weight that is stored [in, out] if `transposed`."""
        tensor = self.read(name)
        return tensor.T.contiguous() if transposed else tensor

    def read_finite(self, name: str, transposed: bool = False) -> Tensor:
        """As `read_turned`; raises CheckpointError if a floating-point value is NaN or Inf."""
        tensor = self.read_turned(name, transposed)
        if tensor.is_floating_point() and not is_finite(tensor):
            count = int((~tensor.isfinite()).sum())
            raise CheckpointError(
                f"{name}: {count} of {tensor.numel()} values are NaN or Inf in "
                f"{self.tensors[name].file.name}; the source checkpoint is broken, download it "
                "again"
            )
        return tensor

    @property
    def quant_method(self) -> str | None:
        """By which its files say they are quantized; None if they do not."""
        config = self.config.get("quantization_config")
        found = config.get("quant_method") if isinstance(config, dict) else None
        return found if isinstance(found, str) else None

    @property
    def size_bytes(self) -> int:
        return sum(info.size_bytes for info in self.tensors.values())

    @cached_property
    def files(self) -> list[Path]:
        """The safetensors files, in order."""
        return sorted({info.file for info in self.tensors.values()})

    @cached_property
    def fingerprint(self) -> str:
        """Changes if the config, any header or either end of any tensor changes.

        The ends of every tensor instead of every byte: a fine-tune moves all tensors, and reading
        140 GB to start a run that was interrupted would cost more than the resumption saves.
        """
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        handles = {file: file.open("rb") for file in self.files}
        try:
            for name, info in sorted(self.tensors.items()):
                digest.update(f"{name}|{info.dtype}|{info.shape}".encode())
                file = handles[info.file]
                file.seek(info.start)
                digest.update(file.read(min(PROBE_BYTES, info.size_bytes)))
                file.seek(max(info.stop - PROBE_BYTES, info.start))
                digest.update(file.read(info.stop - file.tell()))
        finally:
            for file in handles.values():
                file.close()
        return digest.hexdigest()


def _cut(values: Tensor, shape: tuple[int, ...], cut: Cut) -> Tensor:
    columns = shape[0] if cut.flipped else shape[1]
    part = values.view(-1, cut.width)[:, cut.column : cut.column + columns]
    return (part.T if cut.flipped else part).contiguous()


def read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; a model directory needs it")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(data).__name__}")
    return data


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Name -> place of every tensor of one safetensors file, validated by the safetensors
    library."""
    if not file.is_file():
        raise CheckpointError(f"{file}: missing")
    try:
        with safe_open(file, framework="pt"):
            pass  # opening validates lengths, offsets, dtypes and UTF-8
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            header = json.loads(handle.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{file}: not a complete safetensors file ({error}); copy or download it again"
        ) from None
    header.pop("__metadata__", None)
    return {name: _place(file, name, entry, 8 + length) for name, entry in header.items()}


def _place(file: Path, name: str, entry: dict[str, Any], base: int) -> TensorInfo:
    if entry["dtype"] not in DTYPES:
        raise UnsupportedError(f"{file}: {name}: dtype {entry['dtype']} is not supported")
    start, stop = entry["data_offsets"]
    return TensorInfo(
        name=name, file=file, dtype=DTYPES[entry["dtype"]], shape=tuple(entry["shape"]),
        start=base + start, stop=base + stop,
    )  # fmt: skip


def _shards(path: Path) -> dict[Path, set[str] | None]:
    """File -> the names that the index expects there (None: whatever it holds)."""
    if (path / INDEX).is_file():
        return _indexed(path)
    if (path / SINGLE).is_file():
        return {path / SINGLE: None}
    found = sorted(path.glob("*.safetensors"))
    if len(found) == 1:
        return {found[0]: None}
    pickles = sorted(file for file in path.iterdir() if file.suffix in PICKLES)
    if pickles and not found:
        raise UnsupportedError(
            f"{pickles[0]}: pickled weights can run code when they are opened, and are "
            "refused. "
            'Convert them once, in a place you trust: python -c "from transformers import '
            "AutoModelForCausalLM as M; "
            f"M.from_pretrained('{path}').save_pretrained('{path}-safe')\""
        )
    names = ", ".join(file.name for file in found) or "none"
    raise CheckpointError(f"{path}: expected {SINGLE} or {INDEX}; safetensors files found: {names}")


def _indexed(path: Path) -> dict[Path, set[str] | None]:
    weight_map = read_json(path / INDEX).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{path / INDEX}: expected an object 'weight_map'")
    shards: dict[Path, set[str] | None] = {}
    for name, file in weight_map.items():
        if not _is_file_name(file):
            raise CheckpointError(f"{path / INDEX}: {name}: {file!r} is not a file name")
        if not (path / file).is_file():
            raise CheckpointError(f"{path / INDEX}: {name} should be in {file}, which is missing")
        names = shards.setdefault(path / file, set())
        assert names is not None
        names.add(name)
    return shards


def _is_file_name(name: object) -> bool:
    return (
        isinstance(name, str)
        and name.isprintable()  # no NUL, and nothing that a terminal would act on
        and Path(name).name == name
        and len(name.encode()) <= NAME_BYTES
    )


def _compare(file: Path, expected: set[str] | None, found: set[str]) -> None:
    if expected is None or expected == found:
        return
    if missing := sorted(expected - found):
        raise CheckpointError(
            f"{file}: the index places {missing[0]} and {len(missing) - 1} other tensors here, "
            "and the "
            "file does not hold them; are two shards swapped, or from another download?"
        )
    extra = sorted(found - expected)
    raise CheckpointError(
        f"{file}: holds {extra[0]}, which the index does not know ({len(extra)} such)"
    )
