"""Open a directory as whatever it is: dense, compressed-tensors, or our packed layout."""

from __future__ import annotations

from pathlib import Path

from pennyweight.model.checkpoint import Checkpoint
from pennyweight.model.compressed import CompressedCheckpoint, is_compressed
from pennyweight.model.packed import PackedCheckpoint, is_packed

QuantizedCheckpoint = CompressedCheckpoint | PackedCheckpoint


def open_checkpoint(path: str | Path) -> Checkpoint | QuantizedCheckpoint:
    """A quantized one reads as if its weights were dense. Raises CheckpointError,
    UnsupportedError."""
    checkpoint = Checkpoint.open(path)
    if is_compressed(checkpoint):
        return CompressedCheckpoint.open(checkpoint.path)
    if is_packed(checkpoint):
        return PackedCheckpoint.open(checkpoint.path)
    return checkpoint
