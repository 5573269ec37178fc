"""Open a directory as whatever it is: dense, compressed-tensors, our packed layout, GPTQ or AWQ."""

from __future__ import annotations

from pathlib import Path

from pennyweight.model import awq_layout, compressed, gptq_layout, packed
from pennyweight.model.checkpoint import Checkpoint
from pennyweight.model.compressed import CompressedCheckpoint
from pennyweight.model.packed import PackedCheckpoint

QuantizedCheckpoint = CompressedCheckpoint | PackedCheckpoint


def open_checkpoint(path: str | Path) -> Checkpoint | QuantizedCheckpoint:
    """A quantized one reads as if its weights were dense. Raises CheckpointError,
    UnsupportedError."""
    checkpoint = Checkpoint.open(path)
    method = checkpoint.quant_method
    if method == compressed.METHOD:
        return CompressedCheckpoint.open(checkpoint.path)
    if method == packed.METHOD:
        return PackedCheckpoint.open(checkpoint.path)
    if method == gptq_layout.METHOD:
        return gptq_layout.open_gptq(checkpoint)
    if method == awq_layout.METHOD:
        return awq_layout.open_awq(checkpoint)
    return checkpoint
