"""The logits of a real reload: does transformers compute what was computed here?"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils.quantization_config import CompressedTensorsConfig

from pennyweight.core import CheckpointError, NumericalError
from pennyweight.model.adapt import UnfusedExperts
from pennyweight.model.checkpoint import Checkpoint
from pennyweight.model.compressed import CompressedCheckpoint
from pennyweight.model.load import fill, vocabulary
from pennyweight.model.skeleton import Skeleton
from pennyweight.model.workers import start_workers

PROBE_TOKENS = 32


def compare_logits(
    out: Path, source: Checkpoint, *, trust_remote_code: bool = False, max_bytes: int | None
) -> dict[str, Any]:
    """Logits of transformers' own reload of `out` against `source` with the quantized weights.

    max_bytes: what two float32 copies of the model may take; a larger one is skipped, with the
    reason in the result. Raises CheckpointError if the logits differ by more than float32 sums may.
    """
    exported, skeleton = CompressedCheckpoint.open(out), Skeleton.build(source, trust_remote_code)
    reason = _cannot_reload(skeleton, exported, max_bytes)
    if reason:
        return {"skipped": reason}
    ours = fill(skeleton, torch.float32)
    _put_weights(skeleton, exported)
    theirs = _reload(out, exported, trust_remote_code)
    vocab = vocabulary(ours)
    length = min(PROBE_TOKENS, getattr(ours.config, "max_position_embeddings", PROBE_TOKENS))
    ids = torch.randint(vocab, (1, length), generator=torch.Generator().manual_seed(0))
    # On one thread, so that the difference that is written down does not depend on their number.
    with start_workers(1), torch.inference_mode():
        expected, found = ours(input_ids=ids).logits, theirs(input_ids=ids).logits
    if not bool(expected.isfinite().all()):
        raise NumericalError(
            f"{source.path}: the model's logits are NaN or Inf with the weights that were "
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
    """The quantized weights, as the reload will hold them.

    One scheme is dequantized by transformers in the dtype of its scales, several only when they
    run, in the float32 that was asked for.
    """
    uniform = _is_uniform(exported)
    for name, module in skeleton.model.named_modules():
        if isinstance(module, nn.Linear):
            key = skeleton.sources[f"{name}.weight"].key.removesuffix(".weight")
            if key in exported.schemes:
                weight, scales = exported.read(f"{key}.weight"), exported.tensors[f"{key}.weight"]
                held = weight.to(scales.dtype).float() if uniform else weight
                module.weight = nn.Parameter(held, requires_grad=False)


def _is_uniform(exported: CompressedCheckpoint) -> bool:
    return len({scheme.name for scheme in exported.schemes.values()}) == 1


def _reload(out: Path, exported: CompressedCheckpoint, remote: bool) -> PreTrainedModel:
    # Dequantized on load: how an engine rounds activations is its own business, and without it
    # transformers 5.23 cannot read packed zero points. It knows one scheme for all linears there.
    options = {}
    if _is_uniform(exported):
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


def _cannot_reload(
    skeleton: Skeleton, exported: CompressedCheckpoint, max_bytes: int | None
) -> str | None:
    if any(source.transposed for source in skeleton.sources.values()):
        return (
            "transformers reads compressed-tensors into nn.Linear only, and this model has Conv1D"
        )
    schemes = list(exported.schemes.values())
    mixed = len({s.name for s in schemes}) > 1
    asymmetric = not all(s.weight.symmetric for s in schemes)
    activations = any(s.activation for s in schemes)
    if mixed and asymmetric:
        return "transformers cannot read packed zero points beside a second scheme"
    if mixed and activations:
        return "transformers cannot leave activations unrounded beside a second scheme"
    if _experts_are_quantized(skeleton, exported) and (mixed or asymmetric or activations):
        return "transformers fuses experts, and can do so from one symmetric packed scheme only"
    size = 8 * sum(prod(info.shape) for info in skeleton.checkpoint.tensors.values())
    if max_bytes is not None and size > max_bytes:
        return (
            f"two float32 copies take {size / 2**30:.1f} GiB, and here they may not take more than "
            f"{max_bytes / 2**30:.0f} GiB; `pennyweight prove` compares them all the same"
        )
    return None


def _experts_are_quantized(skeleton: Skeleton, exported: CompressedCheckpoint) -> bool:
    return any(
        skeleton.sources[f"{name}.{local}.weight"].key.removesuffix(".weight") in exported.schemes
        for name, module in skeleton.model.named_modules()
        if isinstance(module, UnfusedExperts)
        for local in module.sources
    )
