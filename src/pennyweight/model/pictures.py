"""Files with images: JSON lines of `text` and `image`, a path from the file's folder or several.

A line without `image` is a text of its own. `blind:FILE` is the same texts without their images, to
see what these change.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pennyweight.core.errors import DataError

KEY, BLIND = "image", "blind:"


@dataclass(frozen=True, kw_only=True)
class Pictured:
    """One text and the files of its images, in the order of their placeholders."""

    name: str
    text: str
    images: tuple[Path, ...]


def has_images(source: str) -> bool:
    """Whether a source is a file of JSON lines of which one names an image."""
    path = Path(source.removeprefix(BLIND))
    if path.suffix != ".jsonl" or not path.is_file():
        return False
    with path.open("rb") as file:
        return any(f'"{KEY}"'.encode() in line and bool(_loaded(line).get(KEY)) for line in file)


def _loaded(line: bytes) -> dict[str, Any]:
    """The object of a line; an empty one for what is none, of which reading it will complain."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def read_pictured(path: Path) -> list[Pictured]:
    """The lines of a file; images by their path from the file's folder.

    Raises DataError for a line that is no such object, or an image that is not there.
    """
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if line.strip():
            found.append(_pictured(_loaded(line), path, number))
    return found


def _pictured(record: dict[str, Any], path: Path, number: int) -> Pictured:
    where = f"{path}:{number}"
    text, images = record.get("text"), record.get(KEY) or []
    images = [images] if isinstance(images, str) else images
    if not isinstance(text, str):
        raise DataError(
            f"{where}: expected an object with 'text', a string, and {KEY!r}; found "
            f"{', '.join(map(repr, record)) or 'none'}"
        )
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise DataError(f"{where}: {KEY!r}: expected a path or a list of paths, found {images!r}")
    files = tuple(path.parent / image for image in images)
    if missing := [file for file in files if not file.is_file()]:
        raise DataError(
            f"{where}: no such image: {missing[0]}; paths are relative to {path.parent.resolve()}"
        )
    return Pictured(name=f"{path.name}#{number}", text=text, images=files)
