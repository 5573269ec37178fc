"""An image of noise for a model that sees images, made without its processor.

Only to run two copies of a model on one input. Families agree on two ways to take an image: squares
of the size in the config, or patches in rows with a grid that says how they lie. How many tokens
stand for it is found by encoding it once.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pennyweight.core import UnsupportedError
from pennyweight.model.auto import argument_names
from pennyweight.model.prompt import Prompt

SIDE = 4  # of the grid, in units of the patches that are merged into one token
AROUND = 8  # tokens of text before and after
ENCODING_FAULTS = (
    AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


def synthetic_prompt(model: PreTrainedModel, generator: torch.Generator) -> Prompt:
    """Text, an image of noise, text. Raises UnsupportedError for a family that takes images in
    another way."""
    config, names = model.config, argument_names(model)
    token = getattr(config, "image_token_id", getattr(config, "image_token_index", None))
    if not isinstance(token, int):
        raise UnsupportedError(f"{type(model).__name__} names no token that stands for an image")
    try:
        images = _noise(config, names, generator)
        count = _tokens(model, images)
    except ENCODING_FAULTS as error:
        raise UnsupportedError(
            f"{type(model).__name__} takes images in a way that is not known here "
            f"({type(error).__name__}: {' '.join(str(error).split()):.200})"
        ) from None
    text = torch.randint(_ordinary(config), (2 * AROUND,), generator=generator)
    placeholders = torch.full((count,), token)
    frame = (getattr(config, f"vision_{end}_token_id", None) for end in ("start", "end"))
    before, after = (torch.tensor([each] if isinstance(each, int) else []).long() for each in frame)
    ids = torch.cat([text[:AROUND], before, placeholders, after, text[AROUND:]])
    if "mm_token_type_ids" in names:
        images["mm_token_type_ids"] = (ids == token).long()[None]
    return Prompt(ids=ids, images=images, is_text=ids != token)


def _noise(config: Any, names: set[str], generator: torch.Generator) -> dict[str, Tensor]:
    vision = config.vision_config
    channels = getattr(vision, "in_channels", getattr(vision, "num_channels", 3))
    normal = lambda *shape: torch.randn(*shape, generator=generator)
    if "image_grid_thw" not in names:
        size = vision.image_size
        height, width = size if isinstance(size, list | tuple) else (size, size)
        return {"pixel_values": normal(1, channels, height, width)}
    side = SIDE * vision.spatial_merge_size
    patch = channels * vision.temporal_patch_size * vision.patch_size**2
    return {
        "pixel_values": normal(side * side, patch),
        "image_grid_thw": torch.tensor([[1, side, side]]),
    }


def _tokens(model: PreTrainedModel, images: Mapping[str, Tensor]) -> int:
    """Vectors that the image becomes."""
    encoder: Any = model
    features = encoder.get_image_features(**images)
    features = getattr(features, "pooler_output", features)
    if isinstance(features, Tensor):
        features = [features]
    return sum(prod(each.shape[:-1]) for each in features)


def _ordinary(config: Any) -> int:
    """Token ids below this are text: those of images lie above in the families seen so far, and
    nothing depends on it but that the number of placeholders is right."""
    text = config.get_text_config()
    special = [
        value for key, value in config.to_dict().items()
        if key.endswith(("_token_id", "_token_index")) and isinstance(value, int) and value > 2
    ]  # fmt: skip
    return max(1, min([text.vocab_size, *special]))
