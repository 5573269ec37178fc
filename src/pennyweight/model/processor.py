"""The processor of a model that sees images: from a text and image files to a Prompt.

The processor (what transformers saves beside such a model) turns a text with placeholders and the
images into token ids and the arguments of the model's forward. A text without a placeholder is put
through the processor's chat template, as a turn of the user that begins with its images.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pennyweight.core.errors import CheckpointError, DataError
from pennyweight.model.auto import sees_images
from pennyweight.model.pictures import Pictured
from pennyweight.model.prompt import Prompt

FILES = ("preprocessor_config.json", "processor_config.json")


def load_processor(path: Path, trust_remote_code: bool = False) -> Any:
    """What turns images and text into a model's arguments. Raises CheckpointError if the directory
    has none, or a library that it needs is not installed."""
    if not any((path / file).is_file() for file in FILES):
        raise CheckpointError(
            f"{path}: holds no processor ({' or '.join(FILES)}), which images need; copy "
            "it from the original model, or calibrate on text alone"
        )
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (
        ImportError,
        OSError,
        ValueError,
        KeyError,
        AttributeError,
        TypeError,
        RuntimeError,
    ) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise CheckpointError(
            f"{path}: no processor that can be read here ({reason}); processors of images need "
            "pip install 'pennyweight[vision]'"
        ) from None
    if getattr(processor, "image_processor", None) is None:
        raise CheckpointError(f"{path}: its processor reads no images ({type(processor).__name__})")
    return processor


def load_processor_for(
    source: str, model: nn.Module, directory: Path, trust_remote_code: bool
) -> Any:
    """The processor, if the model can use it. Raises DataError if it reads text alone."""
    if not sees_images(model):
        raise DataError(
            f"{source}: names images, and {type(model).__name__} reads text alone; give text, or a "
            "model that sees images"
        )
    return load_processor(directory, trust_remote_code)


def make_prompt(document: Pictured, processor: Any, arguments: Iterable[str]) -> Prompt:
    """The processor's view of a document. arguments: those that the model's forward names.

    Raises DataError for an image that cannot be read, or a text whose placeholders do not fit.
    """
    images = [open_image(file, document.name) for file in document.images]
    text = _with_placeholders(document, processor)
    try:
        made = processor(images=images or None, text=text, return_tensors="pt")
    except (ValueError, TypeError, IndexError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(
            f"{document.name}: {type(processor).__name__} cannot read it: {reason}"
        ) from None
    ids = made["input_ids"][0]
    kinds = torch.tensor(processor.create_mm_token_type_ids([ids.tolist()]), dtype=torch.int64)
    if not images:
        return Prompt(ids=ids)
    made = {"mm_token_type_ids": kinds, **made}
    # The mask is all ones (one sample, no padding), and the model makes that itself.
    wanted = set(arguments) - {"input_ids", "attention_mask"}
    extra = {
        name: value for name, value in made.items() if name in wanted and isinstance(value, Tensor)
    }
    return Prompt(ids=ids, images=extra, is_text=kinds[0] == 0)


def _with_placeholders(document: Pictured, processor: Any) -> str:
    token, count = getattr(processor, "image_token", None), len(document.images)
    found = document.text.count(token) if token else 0
    if found == count:
        return document.text
    if found:
        raise DataError(
            f"{document.name}: found {found} placeholders {token!r} for {count} images; expected "
            "one for each, or none and a chat template"
        )
    if not getattr(processor, "chat_template", None):
        raise DataError(
            f"{document.name}: the text has no placeholder {token or 'for an image'!r}, and the "
            "processor no chat template to place it; write the placeholder where the image belongs"
        )
    content = [{"type": "image"}] * count + [{"type": "text", "text": document.text}]
    return processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)


def open_image(file: Path, name: str) -> Any:
    try:
        reader = importlib.import_module("PIL.Image")
    except ModuleNotFoundError:
        raise DataError(
            f"{name}: reading an image needs Pillow; pip install 'pennyweight[vision]'"
        ) from None
    try:
        return reader.open(file).convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:  # SyntaxError is what a broken PNG gives
        raise DataError(f"{name}: {file}: not an image that can be read: {error}") from None
