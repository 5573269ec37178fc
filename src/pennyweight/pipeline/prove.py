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
from pennyweight.export.checkpoint import Census
from pennyweight.export.compressed_tensors import activation_args, weight_args
from pennyweight.formats.compressed_tensors import layout
from pennyweight.model.checkpoint import Checkpoint, TensorInfo, read_json
from pennyweight.model.compressed import CompressedCheckpoint
from pennyweight.model.experts import rejoin
from pennyweight.model.opened import QuantizedCheckpoint, open_checkpoint
from pennyweight.model.resolve import resolve_model
from pennyweight.model.skeleton import Skeleton
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
    rewritten: dict[str, str]  # tensor -> digest, of what a transform changed and nothing quantized
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
    original, exported = Checkpoint.open(resolve_model(source)), open_checkpoint(directory)
    if isinstance(exported, QuantizedCheckpoint):
        quantized = {f"{name}.weight": exported.parts_of(name) for name in exported.schemes}
    else:
        quantized = {name: [name] for name in record["linears"]}
    rewritten = record["rewritten"]
    accounted = quantized.keys() | rewritten.keys()
    checkpoint = rejoin(Skeleton.build(original, trust_remote_code).checkpoint, accounted)
    census = Census(
        quantized=quantized,
        rewritten=list(rewritten),
        copied=[name for name in checkpoint.tensors if name not in accounted],
        dropped_files=record["proof"]["census"]["dropped_files"],
    )
    digests = {name: fact["digest"] for name, fact in record["linears"].items()}
    evidence = Evidence(source=checkpoint, digests=digests, rewritten=rewritten, census=census)
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
    exported, skeleton = open_checkpoint(out), Skeleton.build(evidence.source, trust_remote_code)
    transposed = {source.key for source in skeleton.sources.values() if source.transposed}
    return {
        "census": _census(exported, evidence),
        "weights": _weights(exported, evidence, transposed),
        "logits": compare_logits(
            exported, skeleton, trust_remote_code=trust_remote_code, max_bytes=max_bytes
        ),
    }


def _census(exported: Checkpoint, evidence: Evidence) -> dict[str, Any]:
    source, census = evidence.source, evidence.census
    expected = {part for stored in census.quantized.values() for part in stored}
    expected |= {*census.copied, *census.rewritten}
    stored = exported.stored if isinstance(exported, QuantizedCheckpoint) else exported.tensors
    if expected != set(stored):
        odd = sorted(expected ^ set(stored))
        raise CheckpointError(
            f"{exported.path}: {odd[0]} is missing or unexpected ({len(odd)} such)"
        )
    accounted = {*census.quantized, *census.copied, *census.rewritten}
    unaccounted = set(source.tensors) - accounted
    if unaccounted:
        raise CheckpointError(f"{source.path}: {min(unaccounted)} was neither quantized nor copied")
    for name, expected_digest in evidence.rewritten.items():
        if digest(exported.read(name)) != expected_digest:
            raise CheckpointError(f"{exported.path}: {name} is not what the transforms made of it")
    apart = _taken_apart(source)
    files = Checkpoint(exported.path, exported.config, stored)
    for name in census.copied:
        # As bytes, because NaN differs from itself and a copy of it is still a copy.
        before, after = (c.read(name).reshape(-1).view(torch.uint8) for c in (source, files))
        if not torch.equal(before, after):
            raise CheckpointError(f"{exported.path}: {name} differs from the source")
    return {
        "source_tensors": len(source.tensors) - sum(apart.values()) + len(apart),
        "taken_apart": apart,
        "quantized": len(census.quantized),
        "copied_bit_for_bit": len(census.copied),
        "rewritten_by_transforms": len(census.rewritten),
        "dropped_files": census.dropped_files,
    }


def _taken_apart(source: Checkpoint) -> dict[str, int]:
    """Tensor that holds all experts of a layer -> the matrices it became, no value lost."""
    parts: dict[str, list[TensorInfo]] = {}
    for info in source.tensors.values():
        if info.whole is not None:
            parts.setdefault(info.whole.name, []).append(info)
    for name, infos in parts.items():
        whole = infos[0].whole
        assert whole is not None
        if sum(info.size_bytes for info in infos) != whole.size_bytes:
            raise CheckpointError(f"{source.path}: {name}: a part was neither quantized nor copied")
    return {name: len(infos) for name, infos in parts.items()}


def _weights(exported: Checkpoint, evidence: Evidence, transposed: set[str]) -> dict[str, Any]:
    """Decode every weight by our own reader, and by the library that engines use if there is
    one. transposed: tensors of a Conv1D."""
    readers = ["pennyweight"]
    if isinstance(exported, CompressedCheckpoint):
        readers.append("compressed-tensors")
    for tensor, expected in evidence.digests.items():
        turned = isinstance(exported, CompressedCheckpoint) and tensor in transposed
        weight = exported.read_turned(tensor, turned)
        if digest(weight) != expected:
            raise CheckpointError(f"{exported.path}: {tensor} does not decode to what was computed")
        if not isinstance(exported, CompressedCheckpoint):
            continue
        theirs = _decompress(exported, tensor.removesuffix(".weight"), turned)
        if not torch.equal(theirs, weight.to(theirs.dtype)):
            raise CheckpointError(
                f"{exported.path}: the compressed-tensors library reads other values for {tensor}"
            )
    return {
        "equal_bit_for_bit": len(evidence.digests),
        "readers": readers,
    }


def _decompress(exported: CompressedCheckpoint, name: str, transposed: bool) -> Tensor:
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
    if transposed and (weight := stored.get("weight")) is not None:
        stored["weight"] = weight.T.contiguous()
    compressor = BaseCompressor.get_value_from_registry(layout(scheme))
    weight = compressor.decompress(stored, library_scheme)["weight"]
    assert weight is not None
    return weight
