"""What a model is called with once: token ids, and what its processor made of the images there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Int64
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Token ids of one sample. Where an image stands, they hold a placeholder for each of its
    patches, and `images` holds the patches."""

    ids: Int64[Tensor, " tokens"]
    # Argument of the model's forward -> tensor as the processor gives it: pixel_values, and what
    # else the family wants (image_grid_thw, mm_token_type_ids, image_sizes). Empty for text alone.
    images: Mapping[str, Tensor] = field(default_factory=dict)
    is_text: Bool[Tensor, " tokens"] | None = None  # False at placeholders; None: all is text

    def arguments(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """What forward is called with; pixels in `dtype`."""
        images = {
            name: value.to(dtype) if value.is_floating_point() else value
            for name, value in self.images.items()
        }
        return {"input_ids": self.ids[None], **images}

    def targets(self) -> Int64[Tensor, " predicted"]:
        """The positions that are predicted from those before them: text, but not the first."""
        if self.is_text is None:
            return torch.arange(1, len(self.ids))
        return 1 + self.is_text[1:].nonzero()[:, 0]

    def without_images(self) -> Prompt:
        """The text alone."""
        return self if self.is_text is None else Prompt(ids=self.ids[self.is_text])

    def digest(self) -> str:
        """SHA-256 of ids and images."""
        content = hashlib.sha256()
        for name, tensor in [("input_ids", self.ids), *sorted(self.images.items())]:
            content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            content.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return content.hexdigest()


Rows = Tensor | Iterable[Prompt]
"""Samples to run a model on: token ids [samples, tokens], or prompts."""


def prompts(rows: Rows) -> list[Prompt]:
    """Rows of token ids as prompts of text alone; prompts as they are."""
    if isinstance(rows, Tensor):
        return [Prompt(ids=row) for row in rows]
    return list(rows)
