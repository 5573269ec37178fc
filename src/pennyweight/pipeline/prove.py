"""Proof that the files hold what was computed: census, bits, and the logits of a real reload."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.config import CompressionFormat
from compressed_tensors.quantization import QuantizationScheme
from torch import Tensor

from pennyweight.core import CheckpointError
from pennyweight.export.compressed_tensors import Census, activation_args, weight_args
from pennyweight.formats.compressed_tensors import layout, parts
from pennyweight.model.checkpoint import Checkpoint, read_json
from pennyweight.model.compressed import CompressedCheckpoint
from pennyweight.model.resolve import resolve_model
from pennyweight.pipeline.reload import compare_logits
from pennyweight.pipeline.workdir import digest

PROOF = "proof.json"
# A constant and not a share of the free memory: the same command writes the same proof.json.
# Quantizing
# streams, and its proof should not be what takes the most memory.
RELOAD_BYTES = 2 * 2**30


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the proof compares the files with."""

    source: Checkpoint
    digests: dict[str, str]  # tensor -> digest of the weight that was computed
    census: Census


def prove(
    directory: str | Path, source: str | Path, *, trust_remote_code: bool = False
) -> dict[str, Any]:
    """Prove a quantized directory again, on this machine, against its source model.

    The weights are compared with the digests in its proof.json, and the reload is tried whatever
    memory it takes. Raises CheckpointError on the first thing that is wrong.
    """
    directory = Path(directory)
    record = read_json(directory / PROOF)
    exported = CompressedCheckpoint.open(directory)
    checkpoint = Checkpoint.open(resolve_model(source))
    quantized = {
        f"{name}.weight": [f"{name}.{part}" for part in parts(scheme, exported.shape(name))]
        for name, scheme in exported.schemes.items()
    }
    census = Census(
        quantized=quantized,
        copied=[name for name in checkpoint.tensors if name not in quantized],
        dropped_files=record["proof"]["census"]["dropped_files"],
    )
    digests = {name: fact["digest"] for name, fact in record["linears"].items()}
    evidence = Evidence(source=checkpoint, digests=digests, census=census)
    return prove_files(directory, evidence, trust_remote_code=trust_remote_code, max_bytes=None)


def prove_files(
    out: Path,
    evidence: Evidence,
    *,
    trust_remote_code: bool = False,
    max_bytes: int | None = RELOAD_BYTES,
) -> dict[str, Any]:
    """Check `out` and return the facts. Raises CheckpointError on the first thing that is wrong.

    max_bytes: the size of two float32 copies of the model above which no reload is tried.
    """
    exported = CompressedCheckpoint.open(out)
    return {
        "census": _census(exported, evidence),
        "weights": _weights(exported, evidence),
        "logits": compare_logits(
            out, evidence.source, trust_remote_code=trust_remote_code, max_bytes=max_bytes
        ),
    }


def _census(exported: CompressedCheckpoint, evidence: Evidence) -> dict[str, Any]:
    source, census = evidence.source, evidence.census
    expected = {part for stored in census.quantized.values() for part in stored} | set(
        census.copied
    )
    if expected != set(exported.stored):
        odd = sorted(expected ^ set(exported.stored))
        raise CheckpointError(
            f"{exported.path}: {odd[0]} is missing or unexpected ({len(odd)} such)"
        )
    unaccounted = set(source.tensors) - set(census.quantized) - set(census.copied)
    if unaccounted:
        raise CheckpointError(f"{source.path}: {min(unaccounted)} was neither quantized nor copied")
    files = Checkpoint(exported.path, exported.config, exported.stored)
    for name in census.copied:
        # As bytes, because NaN differs from itself and a copy of it is still a copy.
        before, after = (c.read(name).reshape(-1).view(torch.uint8) for c in (source, files))
        if not torch.equal(before, after):
            raise CheckpointError(f"{exported.path}: {name} differs from the source")
    return {
        "source_tensors": len(source.tensors),
        "quantized": len(census.quantized),
        "copied_bit_for_bit": len(census.copied),
        "dropped_files": census.dropped_files,
    }


def _weights(exported: CompressedCheckpoint, evidence: Evidence) -> dict[str, Any]:
    """Decode every weight twice, by our own reader and by the library that engines use."""
    for tensor, expected in evidence.digests.items():
        name = tensor.removesuffix(".weight")
        weight = exported.read(tensor)
        if digest(weight) != expected:
            raise CheckpointError(f"{exported.path}: {tensor} does not decode to what was computed")
        theirs = _decompress(exported, name)
        if not torch.equal(theirs, weight.to(theirs.dtype)):
            raise CheckpointError(
                f"{exported.path}: the compressed-tensors library reads other values for {tensor}"
            )
    return {
        "equal_bit_for_bit": len(evidence.digests),
        "readers": ["pennyweight", "compressed-tensors"],
    }


def _decompress(exported: CompressedCheckpoint, name: str) -> Tensor:
    scheme = exported.schemes[name]
    library_scheme = QuantizationScheme(
        targets=["Linear"], weights=weight_args(scheme.weight),
        input_activations=activation_args(scheme.activation),
        format=CompressionFormat(layout(scheme)),
    )  # fmt: skip
    files = Checkpoint(exported.path, exported.config, exported.stored)
    prefix = f"{name}."
    stored: dict[str, Tensor | None] = {
        key.removeprefix(prefix): files.read(key)
        for key in exported.stored
        if key.startswith(prefix) and not key.endswith((".bias", ".input_scale"))
    }
    compressor = BaseCompressor.get_value_from_registry(layout(scheme))
    weight = compressor.decompress(stored, library_scheme)["weight"]
    assert weight is not None
    return weight
