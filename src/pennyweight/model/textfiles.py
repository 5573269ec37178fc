"""Documents read from a file: plain text, JSON lines, or lists of token ids.

Separate from text.py, which decides what a source name means: here is only what a file holds and
what can be wrong with it. Every DataError names the file, what was found and what was expected.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import regex

from pennyweight.core.errors import DataError
from pennyweight.model.tasktext import task_turns

TEXT_SUFFIXES = (".txt", ".raw", ".md")
TEXT_KEYS = ("text", "content", "story", "document")
ANSWER_KEYS = ("response", "completion")
# Cutting a gigabyte takes a few seconds; an expression that backtracks takes ages for a line.
CUT_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Document:
    """One text, and where it came from (`val.txt#3`, `stdlib:json.decoder`)."""

    name: str
    text: str
    messages: tuple[tuple[str, str], ...] = ()  # role and content, if the file holds a chat


@dataclass(frozen=True, kw_only=True)
class TokenDocument:
    """One text that its owner has already tokenized, special tokens included."""

    name: str
    ids: tuple[int, ...]


def read_file(path: Path) -> list[Document] | list[TokenDocument]:
    """The documents of a .txt (one), .jsonl (one a line) or .json file (lists of token ids)."""
    if path.suffix in TEXT_SUFFIXES:
        return _not_empty(path, [Document(name=path.name, text=_decode(path))])
    if path.suffix == ".jsonl":
        return _not_empty(path, _read_lines(path))
    if path.suffix == ".json":
        return _read_token_lists(path)
    raise DataError(
        f"{path}: files of kind {path.suffix or '(no suffix)'!r} are not read; expected plain text "
        f"({', '.join(TEXT_SUFFIXES)}), .jsonl with a key 'text', or .json with lists of token ids"
    )


def cut(documents: list[Document], pattern: str) -> list[Document]:
    """Every document cut where the regular expression matches; pieces of white space are dropped.

    What matches is dropped too: `\\n\\n(?=Once upon)` keeps the words that begin the next piece.
    """
    try:
        compiled = regex.compile(pattern)
    except (regex.error, OverflowError, RecursionError) as error:
        raise DataError(f"split_at {pattern!r} is not a regular expression: {error}") from error
    if compiled.groups:
        raise DataError(f"split_at {pattern!r} has a group that captures; write (?:...) instead")
    deadline = time.monotonic() + CUT_SECONDS
    return [
        Document(name=f"{document.name}#{number}", text=piece)
        for document in documents
        for number, piece in enumerate(_pieces(document, compiled, deadline), start=1)
    ]


def _pieces(document: Document, compiled: regex.Pattern, deadline: float) -> Iterator[str]:
    """The parts of one text that hold more than white space."""
    left = max(deadline - time.monotonic(), 1e-3)
    try:
        return filter(str.strip, compiled.split(document.text, timeout=left))
    except (TimeoutError, MemoryError):
        raise DataError(
            f"{document.name}: split_at {compiled.pattern!r} came to no end in {CUT_SECONDS:g} s; "
            "use a simpler expression, without a repetition inside a repetition"
        ) from None


def _decode(path: Path) -> str:
    """The text of a file, without byte order mark and with Unix line ends."""
    content = path.read_bytes()
    if not content:
        raise DataError(f"{path}: the file is empty; expected text")
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: byte {error.start} (0x{content[error.start]:02x}) is not UTF-8; "
            "convert the file to UTF-8"
        ) from error


def _not_empty(path: Path, documents: list[Document]) -> list[Document]:
    if not any(document.text.strip() for document in documents):
        raise DataError(f"{path}: found only empty texts in {len(documents)} documents")
    return documents


def _read_lines(path: Path) -> list[Document]:
    """One document a line. Blank lines are skipped; empty texts stay, to be counted."""
    documents = []
    for number, line in enumerate(_decode(path).split("\n"), start=1):
        if line.strip():
            where = f"{path}:{number}"
            documents.append(_record(line, f"{path.name}#{number}", where))
    return documents


def _record(line: str, name: str, where: str) -> Document:
    """The document of one JSON line: its `text`, another common key, a chat, prompt and answer, or
    a question of a task with its right answer."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: found {type(record).__name__}; expected an object with 'text'")
    if record.get("image"):
        raise DataError(
            f"{where}: names an image, and only text is read here; files with images stand alone "
            "among the sources to calibrate or evaluate on, not in a mix, and are not cut"
        )
    for key in TEXT_KEYS:
        if key in record:
            return Document(name=name, text=_string(record[key], f"{where}: {key!r}"))
    if "messages" in record:
        turns = _chat(record["messages"], where)
        text = "\n".join(f"{role}: {content}" for role, content in turns)
        return Document(name=name, text=text, messages=turns)
    answer = next((key for key in ANSWER_KEYS if key in record), None)
    if "prompt" in record and answer:
        asked, said = (_string(record[key], f"{where}: {key!r}") for key in ("prompt", answer))
        return Document(
            name=name, text=asked + said, messages=(("user", asked), ("assistant", said))
        )
    if task := task_turns(record, where):
        text = " ".join(part for _, part in task)
        return Document(name=name, text=text, messages=task)
    raise DataError(
        f"{where}: found the keys {', '.join(map(repr, record)) or '(none)'}; expected one of "
        f"{', '.join(map(repr, TEXT_KEYS))}, 'messages', 'prompt' with 'response', or 'query' "
        "with 'choices' and 'gold'"
    )


def _chat(messages: object, where: str) -> tuple[tuple[str, str], ...]:
    """Role and content of each turn; as text they are lines `role: content`. A chat template would
    need the tokenizer; a file must not."""
    if not isinstance(messages, list):
        raise DataError(f"{where}: 'messages' is {type(messages).__name__}; expected a list")
    turns = []
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise DataError(f"{where}: messages[{number}] has no 'role' and 'content'")
        content = _string(message["content"], f"{where}: messages[{number}].content")
        turns.append((str(message["role"]), content))
    return tuple(turns)


def _string(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where} is {type(value).__name__}; expected a string")
    return value


def _read_token_lists(path: Path) -> list[TokenDocument]:
    """A JSON list of lists of token ids, one list a document."""
    try:
        lists = json.loads(_decode(path))
    except (ValueError, RecursionError) as error:  # also integers of 5000 digits
        raise DataError(f"{path}: not JSON: {error}") from error
    if not isinstance(lists, list) or not lists:
        raise DataError(f"{path}: expected a list of lists of token ids, as [[1, 5, 9], [1, 7]]")
    for number, ids in enumerate(lists):
        # type() and not isinstance(): True is an int, and no token.
        if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < 2**63 for i in ids):
            raise DataError(
                f"{path}: item {number} is not a list of token ids (integers from 0 to 2^63 - 1)"
            )
    if not any(lists):
        raise DataError(f"{path}: found only empty lists in {len(lists)} documents")
    return [
        TokenDocument(name=f"{path.name}#{number}", ids=tuple(ids))
        for number, ids in enumerate(lists, start=1)
    ]
