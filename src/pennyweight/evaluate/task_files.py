"""Tasks kept in a file: a question a line, in the layouts in which evaluation sets are handed
around. Here is what a file may hold and what can be wrong with it; layouts.py says what is asked.

The layouts are told apart by their keys, and a file has one of them: that of its first line.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pennyweight.core.errors import DataError

Item = Mapping[str, Any]

LAYOUTS: Mapping[str, tuple[str, ...]] = {
    "code": ("prompt", "entry_point", "test"),  # HumanEval
    "choices": ("query", "choices", "gold"),  # ARC, PIQA, COPA, OpenBookQA, HellaSwag
    "contexts": ("context_options", "continuation", "gold"),  # Winogrande
    "minimal_pair": ("sentence_good", "sentence_bad"),  # BLiMP
    "answer": ("question", "answer"),  # GSM8K, and any short answer
    "continuation": ("context", "continuation"),  # LAMBADA
}
"""Layout -> the keys of a line. Others are allowed and ignored."""

FEATURES = {  # enough of them to know the layout, though another key may be missing
    layout: tuple(key for key in keys if key != "gold") for layout, keys in LAYOUTS.items()
}


SPLITS = ("train", "test", "val", "valid", "validation", "dev")  # names that say no task


@dataclass(frozen=True, kw_only=True)
class TaskFile:
    """A checked file. Items hold the keys of the layout and nothing else."""

    path: Path
    name: str  # of the task: the file's without suffixes, after its folder's if it is `test`
    layout: str
    items: tuple[Item, ...]
    digest: str  # SHA-256 of the items


def is_task_file(name: str) -> bool:
    """Whether a task is named by its file: a name with this suffix is never a task's."""
    return name.endswith((".jsonl", ".jsonl.gz"))


def read_task_file(path: str | Path) -> TaskFile:
    """Raises DataError naming file and line: not JSON, no layout's keys, another layout than the
    line before, no gold label, an empty text."""
    path = Path(path)
    items: list[Item] = []
    layout = ""
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        row = _row(line, where)
        found = _layout(row, where)
        if layout and found != layout:
            raise DataError(
                f"{where}: has the keys of {found!r} ({', '.join(LAYOUTS[found])}), but the file "
                f"began as {layout!r} ({', '.join(LAYOUTS[layout])}); keep one task to a file"
            )
        layout = found
        items.append(_checked(row, layout, where))
    if not items:
        raise DataError(f"{path}: holds no question; expected one JSON object a line")
    content = json.dumps([layout, items], sort_keys=True)
    return TaskFile(
        path=path,
        name=_name(path),
        layout=layout,
        items=tuple(items),
        digest=hashlib.sha256(content.encode()).hexdigest(),
    )


def _name(path: Path) -> str:
    name = path.name.removesuffix(".gz").removesuffix(".jsonl")
    return f"{path.resolve().parent.name}_{name}" if name in SPLITS else name


def _lines(path: Path) -> list[str]:
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        return content.decode("utf-8-sig").split("\n")
    except FileNotFoundError:
        raise DataError(
            f"{path}: there is no such file; expected a task, one JSON line an item"
        ) from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: found {type(row).__name__}; expected an object")
    return row


def _layout(row: Mapping[str, Any], where: str) -> str:
    for layout, keys in FEATURES.items():
        if all(key in row for key in keys):
            return layout
    known = "; ".join(", ".join(keys) for keys in LAYOUTS.values())
    raise DataError(
        f"{where}: found the keys {', '.join(map(repr, row)) or '(none)'}; expected one of these "
        f"sets: {known}"
    )


def _checked(row: Mapping[str, Any], layout: str, where: str) -> Item:
    if "gold" in LAYOUTS[layout] and row.get("gold") is None:
        raise DataError(
            f"{where}: no gold label; expected 'gold', the number of the right choice from 0. "
            "Without it nothing can be scored"
        )
    texts = {
        key: CHECKS.get(key, _text)(row[key], f"{where}: {key!r}")
        for key in LAYOUTS[layout]
        if key != "gold"
    }
    return texts | ({"gold": _gold(row, layout, where)} if "gold" in LAYOUTS[layout] else {})


def _gold(row: Mapping[str, Any], layout: str, where: str) -> int:
    choices = row["choices" if layout == "choices" else "context_options"]
    gold = row["gold"]
    if type(gold) is not int or not 0 <= gold < len(choices):
        raise DataError(
            f"{where}: 'gold' is {gold!r}; expected a number from 0 to {len(choices) - 1}, "
            f"for {len(choices)} choices"
        )
    return gold


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where} is {type(value).__name__}; expected a string")
    if not value.strip():
        raise DataError(f"{where} is empty; expected text")
    return value


def _texts(value: object, where: str) -> list[str]:
    if not isinstance(value, list) or len(value) < 2:
        raise DataError(f"{where} is {value!r:.60}; expected a list of at least two strings")
    return [_text(each, f"{where}[{number}]") for number, each in enumerate(value)]


CHECKS: Mapping[str, Callable[[object, str], object]] = {
    "choices": _texts,
    "context_options": _texts,
}
