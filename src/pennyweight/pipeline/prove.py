"""Proof that the files hold what was computed: census, bits, and the logits of a real reload."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
import transformers
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.config import CompressionFormat
from compressed_tensors.quantization import QuantizationScheme
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils.quantization_config import CompressedTensorsConfig

from pennyweight.core import CheckpointError, NumericalError
from pennyweight.export.compressed_tensors import Census, activation_args, weight_args
from pennyweight.formats.compressed_tensors import layout, parts
from pennyweight.model.adapt import UnfusedExperts
from pennyweight.model.checkpoint import Checkpoint, read_json
from pennyweight.model.compressed import CompressedCheckpoint
from pennyweight.model.load import fill, vocabulary
from pennyweight.model.resolve import resolve_model
from pennyweight.model.skeleton import Skeleton
from pennyweight.pipeline.workdir import digest

PROOF = "proof.json"
PROBE_TOKENS = 32
MEMORY_SHARE = 0.5  # of the free memory that two float32 copies of the model may take


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

    The weights are compared with the digests in its proof.json. Raises CheckpointError on the first
    thing that is wrong.
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
    return prove_files(directory, evidence, trust_remote_code)


def prove_files(out: Path, evidence: Evidence, trust_remote_code: bool = False) -> dict[str, Any]:
    """Check `out` and return the facts. Raises CheckpointError on the first thing that is wrong."""
    exported = CompressedCheckpoint.open(out)
    return {
        "census": _census(exported, evidence),
        "weights": _weights(exported, evidence),
        "logits": _logits(out, exported, evidence, trust_remote_code),
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


def _logits(
    out: Path, exported: CompressedCheckpoint, evidence: Evidence, remote: bool
) -> dict[str, Any]:
    """Logits of transformers' own reload against the source model with the computed weights."""
    skeleton = Skeleton.build(evidence.source, remote)
    reason = _cannot_reload(skeleton, exported)
    if reason:
        return {"skipped": reason}
    ours = fill(skeleton, torch.float32)
    _put_weights(skeleton, exported)
    theirs = _reload(out, exported, remote)
    vocab = vocabulary(ours)
    length = min(PROBE_TOKENS, getattr(ours.config, "max_position_embeddings", PROBE_TOKENS))
    ids = torch.randint(vocab, (1, length), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, found = ours(input_ids=ids).logits, theirs(input_ids=ids).logits
    if not bool(expected.isfinite().all()):
        raise NumericalError(
            f"{evidence.source.path}: the model's logits are NaN or Inf with the weights that were "
            "computed; are the weights of the source so large that its products overflow?"
        )
    error = (expected - found).abs().max().item()
    # Both compute in float32 from the same weights; they differ in the order of sums alone.
    bound = 1e-3 * max(expected.abs().max().item(), 1.0)
    if not error <= bound:
        raise CheckpointError(
            f"{out}: transformers' reload gives other logits (largest difference {error:.3g}, "
            f"allowed {bound:.3g})"
        )
    return {"tokens": length, "largest_difference": error, "allowed": bound, "by": "transformers"}


def _put_weights(skeleton: Skeleton, exported: CompressedCheckpoint) -> None:
    """The weights as an engine holds them: rounded to the dtype of their scales."""
    for name, module in skeleton.model.named_modules():
        if isinstance(module, nn.Linear):
            key = skeleton.sources[f"{name}.weight"].key.removesuffix(".weight")
            if key in exported.schemes:
                dtype = exported.tensors[f"{key}.weight"].dtype  # that of the scales
                weight = exported.qtensor(key).dequantize().to(dtype).float()
                module.weight = nn.Parameter(weight, requires_grad=False)


def _reload(out: Path, exported: CompressedCheckpoint, remote: bool) -> PreTrainedModel:
    # Dequantized on load: how an engine rounds activations is its own business, and without it
    # transformers 5.23 cannot read packed zero points. It knows one scheme for all linears there.
    options = {}
    if len({scheme.name for scheme in exported.schemes.values()}) == 1:
        options["quantization_config"] = CompressedTensorsConfig(dequantize=True)
    with _quiet():
        return AutoModelForCausalLM.from_pretrained(
            out, dtype=torch.float32, trust_remote_code=remote, **options
        ).eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the remarks on asking for what the checkpoint says anyway, and on input scales."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You passed `quantization_config`")
            yield
    finally:
        transformers.logging.set_verbosity(level)
        transformers.logging.enable_progress_bar()


def _cannot_reload(skeleton: Skeleton, exported: CompressedCheckpoint) -> str | None:
    if any(source.transposed for source in skeleton.sources.values()):
        return (
            "transformers reads compressed-tensors into nn.Linear only, and this model has Conv1D"
        )
    schemes = exported.schemes.values()
    if len({s.name for s in schemes}) > 1 and not all(s.weight.symmetric for s in schemes):
        return "transformers cannot read packed zero points beside a second scheme"
    if _experts_are_quantized(skeleton, exported) and (
        len({s.name for s in schemes}) > 1
        or any(s.activation or not s.weight.symmetric for s in schemes)
    ):
        return "transformers fuses experts, and can do so from one symmetric packed scheme only"
    size = 4 * sum(prod(info.shape) for info in skeleton.checkpoint.tensors.values())
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if 2 * size > MEMORY_SHARE * free:
        # Without saying how much is free: the same command writes the same bytes.
        return f"two float32 copies, {2 * size / 2**30:.1f} GiB, would take most of the free memory"
    return None


def _experts_are_quantized(skeleton: Skeleton, exported: CompressedCheckpoint) -> bool:
    return any(
        skeleton.sources[f"{name}.{local}.weight"].key.removesuffix(".weight") in exported.schemes
        for name, module in skeleton.model.named_modules()
        if isinstance(module, UnfusedExperts)
        for local in module.sources
    )
