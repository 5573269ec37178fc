"""Samples to calibrate or evaluate on where some have images: whole, in an order of the seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pennyweight.core.errors import DataError
from pennyweight.model.auto import argument_names
from pennyweight.model.calibration import Request
from pennyweight.model.calibration.base import seeded
from pennyweight.model.pictures import BLIND, has_images, read_pictured
from pennyweight.model.processor import load_processor_for, make_prompt
from pennyweight.model.prompt import Prompt
from pennyweight.model.skeleton import Skeleton
from pennyweight.model.text import Calibration, draw

PACKING = "samples of files with images are shuffled and never cut or joined, each as long as it is"


def pictured_prompts(
    source: str, model: nn.Module, directory: Path, trust_remote_code: bool = False
) -> Iterator[tuple[str, Prompt]]:
    """(name, prompt) of every line of a file with images, in its order.

    directory: of the model, with its processor. Raises DataError if the model reads text alone.
    """
    return _prompts(
        [source], model, load_processor_for(source, model, directory, trust_remote_code)
    )


def _prompts(
    sources: Sequence[str], model: nn.Module, processor: Any, seed: int | None = None
) -> Iterator[tuple[str, Prompt]]:
    """Prompts of all sources, one after another; shuffled if there is a seed."""
    lines = [
        (line, source.startswith(BLIND))
        for source in sources
        for line in read_pictured(Path(source.removeprefix(BLIND)))
    ]
    order = torch.arange(len(lines))
    if seed is not None:
        order = torch.randperm(len(lines), generator=seeded(seed, "images"))
    arguments, limit = argument_names(model), _limit(model)
    for index in order.tolist():
        document, blind = lines[index]
        prompt = make_prompt(document, processor, arguments)
        prompt = prompt.without_images() if blind else prompt
        _check_length(prompt, document.name, limit)
        yield document.name, prompt


def draw_samples(sources: Sequence[str], request: Request, skeleton: Skeleton) -> Calibration:
    """As `draw`; sources may also be files with images, for a model that sees them.

    Beside sources of text, samples with images are at most half. Raises DataError for images given
    to a model of text.
    """
    pictured = [source for source in sources if has_images(source)]
    if not pictured:
        return draw(sources, request)
    text = [source for source in sources if source not in pictured]
    limit = request.samples // 2 if text else request.samples
    made = _draw_pictured(pictured, replace(request, samples=max(1, limit)), skeleton.model)
    if not text:
        return made
    rest = draw(text, replace(request, samples=max(1, request.samples - len(made.pictured))))
    return replace(
        rest, pictured=made.pictured, sources=tuple(sources), packing=f"{rest.packing}; {PACKING}"
    )


def _draw_pictured(sources: Sequence[str], request: Request, model: nn.Module) -> Calibration:
    assert request.model is not None, "where the processor is"
    processor = load_processor_for(sources[0], model, request.model, request.trust_remote_code)
    found = _prompts(sources, model, processor, request.seed)
    made = tuple(prompt for _, prompt in islice(found, request.samples))
    few = f"asked for {request.samples} samples, there are {len(made)}"
    return Calibration(
        ids=torch.empty(0, request.tokens, dtype=torch.int64), sources=tuple(sources),
        seed=request.seed, bos="as the processor says", packing=PACKING,
        note=few if len(made) < request.samples else "", pictured=made,
    )  # fmt: skip


def _limit(model: nn.Module) -> int | None:
    config: Any = model.config
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def _check_length(prompt: Prompt, name: str, limit: int | None) -> None:
    if not len(prompt.targets()):
        raise DataError(f"{name}: has no text beside its image; expected some to predict")
    if limit is not None and len(prompt.ids) > limit:
        raise DataError(
            f"{name}: {len(prompt.ids)} tokens with its images, and the model has positions for "
            f"{limit}; give smaller images or a shorter text"
        )
