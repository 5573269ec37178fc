"""The logits of a real reload: does transformers compute what was computed here?"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from math import prod
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.quantizers.base import MODULES_TO_PATCH_FOR_QUANTIZATION
from transformers.utils.quantization_config import CompressedTensorsConfig, QuantizationMethod

from pennyweight.core import CheckpointError, NumericalError, UnsupportedError
from pennyweight.formats.compressed_tensors import decoded_dtype
from pennyweight.model.adapt import UnfusedExperts
from pennyweight.model.auto import AutoModel, auto_class, sees_images
from pennyweight.model.capture import max_tokens
from pennyweight.model.checkpoint import Checkpoint
from pennyweight.model.compressed import CompressedCheckpoint
from pennyweight.model.load import fill, vocabulary
from pennyweight.model.packed import PackedCheckpoint
from pennyweight.model.prompt import Prompt
from pennyweight.model.skeleton import Skeleton
from pennyweight.model.synthetic import synthetic_prompt
from pennyweight.model.workers import start_workers

PROBE_TOKENS = 32


def compare_logits(
    exported: Checkpoint,
    skeleton: Skeleton,
    *,
    trust_remote_code: bool = False,
    max_bytes: int | None,
) -> dict[str, Any]:
    """Logits of transformers' own reload of `exported` against its source with the quantized
    weights.

    skeleton: of the source. max_bytes: what two float32 copies of the model may take; a larger one
    is skipped, with the reason in the result. Raises CheckpointError if the logits differ by more
    than float32 sums may.
    """
    if isinstance(exported, PackedCheckpoint):
        return {"skipped": "transformers does not read the packed layout"}
    reason = _cannot_reload(skeleton, exported, max_bytes)
    if reason:
        return {"skipped": reason}
    here = Skeleton.build(exported, trust_remote_code)
    ours = fill(here, torch.float32)
    if isinstance(exported, CompressedCheckpoint):
        _hold_weights(here, exported)
    theirs = _reload(exported, auto_class(ours.config), trust_remote_code)
    generator = torch.Generator().manual_seed(0)
    length = min(PROBE_TOKENS, max_tokens(here) or PROBE_TOKENS)
    ids = torch.randint(vocabulary(ours), (length,), generator=generator)
    found = _compare(ours, theirs, Prompt(ids=ids), exported.path)
    if sees_images(ours):
        found["with_image"] = _compare_image(ours, theirs, generator, exported.path)
    return found


def _compare_image(
    ours: PreTrainedModel, theirs: PreTrainedModel, generator: torch.Generator, path: Path
) -> dict[str, Any]:
    """As `_compare`, for an image of noise within text."""
    try:
        prompt = synthetic_prompt(ours, generator)
    except UnsupportedError as error:
        return {"skipped": str(error)}
    return _compare(ours, theirs, prompt, path)


def _compare(
    ours: PreTrainedModel, theirs: PreTrainedModel, prompt: Prompt, path: Path
) -> dict[str, Any]:
    arguments = prompt.arguments(torch.float32)
    # On one thread, so that the difference that is written down does not depend on their number.
    with start_workers(1), torch.inference_mode(), _quiet():  # several schemes decode as they run
        expected, found = ours(**arguments).logits, theirs(**arguments).logits
    if not bool(expected.isfinite().all()):
        raise NumericalError(
            f"{path}: the model's logits are NaN or Inf with the weights that were computed; are "
            "the weights of the source so large that its products overflow?"
        )
    error = (expected - found).abs().max().item()
    # Both compute in float32 from the same weights; they differ in the order of sums alone.
    bound = 1e-3 * max(expected.abs().max().item(), 1.0)
    if not error <= bound:
        what = " for a text with an image" if prompt.images else ""
        raise CheckpointError(
            f"{path}: transformers' reload gives other logits{what} "
            f"(largest difference {error:.3g}, allowed {bound:.3g})"
        )
    tokens = len(prompt.ids)
    return {"tokens": tokens, "largest_difference": error, "allowed": bound, "by": "transformers"}


def _hold_weights(skeleton: Skeleton, exported: CompressedCheckpoint) -> None:
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


def _reload(exported: Checkpoint, auto: AutoModel, remote: bool) -> PreTrainedModel:
    # Dequantized on load: how an engine rounds activations is its own business, and without it
    # transformers 5.23 cannot read packed zero points. It knows one scheme for all linears there.
    options = {}
    if isinstance(exported, CompressedCheckpoint) and _is_uniform(exported):
        options["quantization_config"] = CompressedTensorsConfig(dequantize=True)
    with _quiet():
        return auto.from_pretrained(
            exported.path, dtype=torch.float32, trust_remote_code=remote, **options
        ).eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the remarks on asking for what the checkpoint says anyway, on input scales, and on
    the second name that a tensor has where transformers renames it; and without the bars of
    compressed-tensors, which nothing turns off."""
    library = logging.getLogger("compressed_tensors")
    level, library_level = transformers.logging.get_verbosity(), library.level
    library.setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.filterwarnings("ignore", "You passed `quantization_config`")
            yield
    finally:
        library.setLevel(library_level)
        transformers.logging.set_verbosity(level)
        transformers.logging.enable_progress_bar()


def _cannot_reload(skeleton: Skeleton, exported: Checkpoint, max_bytes: int | None) -> str | None:
    if why := _cannot_find_experts(skeleton, exported):
        return why
    if isinstance(exported, CompressedCheckpoint) and (why := _cannot_decode(skeleton, exported)):
        return why
    size = 8 * sum(prod(info.shape) for info in skeleton.checkpoint.tensors.values())
    if max_bytes is not None and size > max_bytes:
        return (
            f"two float32 copies take {size / 2**30:.1f} GiB, and here they may not take more than "
            f"{max_bytes / 2**30:.0f} GiB; `pennyweight prove` compares them all the same"
        )
    return None


def _cannot_find_experts(skeleton: Skeleton, exported: Checkpoint) -> str | None:
    """Experts that the source joins in one tensor; transformers knows some quantized ones apart."""
    compressed = isinstance(exported, CompressedCheckpoint)
    for experts in _experts(skeleton, joined=True):
        known = MODULES_TO_PATCH_FOR_QUANTIZATION.get(experts.kind, {})
        apart = compressed and QuantizationMethod.COMPRESSED_TENSORS in known.get(
            "quantization_methods", ()
        )
        stored = {source.key in exported.tensors for source in experts.sources.values()}
        if stored != {apart}:
            there, here = ("one by one", "in one tensor") if apart else ("in one tensor", "apart")
            return f"transformers looks for the experts of a layer {there}, and they are {here}"
    return None


def _cannot_decode(skeleton: Skeleton, exported: CompressedCheckpoint) -> str | None:
    """What transformers cannot do with a compressed-tensors checkpoint."""
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
    if mixed and any(decoded_dtype(s, torch.float32) is not torch.float32 for s in schemes):
        return "transformers decodes MX and NVFP4 to bfloat16 alone, and not beside a second scheme"
    if mixed and activations:
        return "transformers cannot leave activations unrounded beside a second scheme"
    if _experts_are_quantized(skeleton, exported) and (mixed or asymmetric or activations):
        return "transformers fuses experts, and can do so from one symmetric packed scheme only"
    return None


def _experts_are_quantized(skeleton: Skeleton, exported: CompressedCheckpoint) -> bool:
    """Of those that transformers fuses when it loads them."""
    return any(
        source.key.removesuffix(".weight") in exported.schemes
        for experts in _experts(skeleton, joined=False)
        for source in experts.sources.values()
    )


def _experts(skeleton: Skeleton, joined: bool) -> Iterator[UnfusedExperts]:
    """Those that the source stores as one tensor for all experts of a layer, or the others."""
    for module in skeleton.model.modules():
        if isinstance(module, UnfusedExperts):
            keys = [source.key for source in module.sources.values()]
            if joined == any(skeleton.checkpoint.tensors[key].whole is not None for key in keys):
                yield module
