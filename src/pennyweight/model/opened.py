"""Open a directory as whatever it is: dense, compressed-tensors, our packed layout, GPTQ or AWQ."""

from __future__ import annotations

from pathlib import Path

from pennyweight.model.awq_layout import is_awq, open_awq
from pennyweight.model.checkpoint import Checkpoint
from pennyweight.model.compressed import CompressedCheckpoint, is_compressed
from pennyweight.model.gptq_layout import is_gptq, open_gptq
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
    if is_gptq(checkpoint):
        return open_gptq(checkpoint)
    if is_awq(checkpoint):
        return open_awq(checkpoint)
    return checkpoint
