"""A whole model in memory, dense or quantized, ready to run. For evaluation and proof, not for
quantizing."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from pennyweight.core import CheckpointError
from pennyweight.model.capture import set_parameters
from pennyweight.model.linear import QuantizedLinear
from pennyweight.model.opened import QuantizedCheckpoint, open_checkpoint
from pennyweight.model.resolve import resolve_model
from pennyweight.model.skeleton import Skeleton

TOKENIZER_FILES = ("tokenizer*", "*.model", "vocab.*", "*.tiktoken", "*bpe*")


def load_model(
    path: str | Path, dtype: torch.dtype = torch.float32, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The model of a directory or Hub id, in eval mode.

    A quantized checkpoint is dequantized, and its activations are rounded as its scheme says. The
    computation is in `dtype`. Raises CheckpointError, UnsupportedError.
    """
    checkpoint = open_checkpoint(resolve_model(path))
    skeleton = Skeleton.build(checkpoint, trust_remote_code)
    model = fill(skeleton, dtype)
    if isinstance(checkpoint, QuantizedCheckpoint):
        _round_activations(skeleton, checkpoint)
    return model


def fill(skeleton: Skeleton, dtype: torch.dtype) -> PreTrainedModel:
    """Read every parameter of the skeleton's model; tied ones share their memory."""
    values: dict[str, torch.Tensor] = {}
    by_key: dict[tuple[str, bool], torch.Tensor] = {}
    for name, source in skeleton.sources.items():
        place = (source.key, source.transposed)
        if place not in by_key:
            tensor = skeleton.read(source)
            by_key[place] = tensor.to(dtype) if tensor.is_floating_point() else tensor
        values[name] = by_key[place]
    set_parameters(skeleton.model, values)
    return skeleton.model


def vocabulary(model: PreTrainedModel) -> int:
    """Rows of the input embedding: the token ids that the model knows."""
    embedding = model.get_input_embeddings()
    assert isinstance(embedding.weight, torch.Tensor)
    return embedding.weight.shape[0]


def _round_activations(skeleton: Skeleton, checkpoint: QuantizedCheckpoint) -> None:
    linears = {name: m for name, m in skeleton.model.named_modules() if isinstance(m, nn.Linear)}
    for name, linear in linears.items():
        key = skeleton.sources[f"{name}.weight"].key.removesuffix(".weight")
        scheme = checkpoint.schemes.get(key)
        if scheme is not None and scheme.activation is not None:
            parent, _, child = name.rpartition(".")
            scale = checkpoint.input_scale(key)
            replacement = QuantizedLinear(linear.weight, linear.bias, scheme.activation, scale)
            setattr(skeleton.model.get_submodule(parent), child, replacement)


def has_tokenizer(directory: Path) -> bool:
    return any(next(directory.glob(p), None) for p in TOKENIZER_FILES)


def load_tokenizer(path: str | Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Raises CheckpointError if the directory has none that transformers can read."""
    directory = resolve_model(path)
    if not has_tokenizer(directory):
        # Without any, transformers makes up an empty one, and every text has no tokens.
        raise CheckpointError(
            f"{directory}: holds no tokenizer; give text as token ids, a .json list of lists of ids"
        )
    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise CheckpointError(
            f"{directory}: no tokenizer that can be read here ({reason})"
        ) from None
