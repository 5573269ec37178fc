"""Write a safetensors file one tensor at a time, and put it in place only when it is whole.

The safetensors library wants all tensors of a file in memory at once; here the header is written
from shapes that are known beforehand, and each tensor is made, written and forgotten. The format: 8
bytes of header length, a JSON header, the data (https://github.com/huggingface/safetensors, section
Format).
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from pennyweight.core import CheckpointError
from pennyweight.model.checkpoint import DTYPES

NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A tensor to be written: its name, what it will be, and how to make it when its turn comes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> Entry:
        return cls(name=name, dtype=tensor.dtype, shape=tuple(tensor.shape), make=lambda: tensor)

    @property
    def size_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def write_safetensors(path: Path, entries: Iterable[Entry], metadata: Mapping[str, str]) -> None:
    """Raises CheckpointError if the disk is full; `path` then does not exist, or is what it was."""
    # Widest dtype first keeps every tensor aligned; then by name, so that the order is nobody's
    # choice.
    ordered = sorted(entries, key=lambda e: (-e.dtype.itemsize, e.name))
    with _placed(path) as file:
        file.write(_header(ordered, metadata))
        for entry in ordered:
            tensor = entry.make().contiguous()
            assert tensor.dtype == entry.dtype and tuple(tensor.shape) == entry.shape, entry.name
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)


def write_text(path: Path, text: str) -> None:
    """As `write_safetensors`, for a text file."""
    with _placed(path) as file:
        file.write(text.encode())


@contextmanager
def _placed(path: Path) -> Iterator[BinaryIO]:
    """A file under another name, which gets the name `path` when it is whole and on the disk."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        replace_file(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise disk_error(path, error) from None


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """What the file system refuses while `path` is made, as a CheckpointError."""
    try:
        yield
    except OSError as error:
        raise disk_error(path, error) from None


def replace_file(temporary: Path, path: Path) -> None:
    """Rename, and make the rename itself survive a power cut."""
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def disk_error(path: Path, error: OSError) -> CheckpointError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CheckpointError(
            f"{path}: the disk is full; what was finished is kept: free some space and repeat the "
            "command"
        )
    return CheckpointError(f"{path}: cannot be written: {error.strerror}")


def _header(entries: list[Entry], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for entry in entries:
        span = [offset, offset + entry.size_bytes]
        header[entry.name] = {
            "dtype": NAMES[entry.dtype], "shape": list(entry.shape), "data_offsets": span,
        }  # fmt: skip
        offset = span[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
