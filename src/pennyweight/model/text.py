"""Text sources, and the calibration samples made from them.

A source is a name (`stdlib`: Python's own library, no download) or the path of a file.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Int64
from torch import Tensor

from pennyweight.core.errors import DataError, UnknownNameError
from pennyweight.model.stdlib import stdlib_documents
from pennyweight.model.textfiles import Document, TokenDocument, cut, read_file
from pennyweight.model.tokens import Tokenizer, describe_bos, tokenize

__all__ = ["Calibration", "Document", "TokenDocument", "calibration_samples", "documents"]

NAMED: dict[str, Literal["train", "heldout"]] = {"stdlib": "train", "stdlib-heldout": "heldout"}
"""Sources that need no file: `stdlib` is for calibration, `stdlib-heldout` for evaluation."""

# Characters a token: a passage is then about one row, so that rows come from many places in the
# text even if the text is one long file, and no more of it is tokenized than is used.
PASSAGE_PER_TOKEN = 4
PACKING = (
    f"texts over {PASSAGE_PER_TOKEN} x tokens characters are cut into passages at the next line "
    "end; passages are shuffled, tokenized with the tokenizer's own special tokens, joined, and "
    "cut into rows"
)


def documents(source: str, *, split_at: str | None = None) -> list[Document] | list[TokenDocument]:
    """The documents of a source, in their order there; `split_at` cuts every text further.

    Raises UnknownNameError for a name nobody knows and DataError for a file that cannot be used.
    """
    found = _named(source) if source in NAMED else _file(source)
    if split_at is None:
        return found
    texts = [document for document in found if isinstance(document, Document)]
    if len(texts) < len(found):
        raise DataError(f"{source}: holds token ids, which split_at cannot cut; leave it out")
    return cut(texts, split_at)


def _named(source: str) -> list[Document]:
    return [
        Document(name=f"{source}:{name}", text=text)
        for name, text in stdlib_documents(NAMED[source])
    ]


def _file(source: str) -> list[Document] | list[TokenDocument]:
    path = Path(source)
    if path.is_file():
        return read_file(path)
    if path.is_dir():
        raise DataError(f"{source}: is a folder; name a file in it, or several files")
    if path.suffix or len(path.parts) > 1:
        raise DataError(f"{source}: no such file (looked in {Path.cwd()})")
    close = difflib.get_close_matches(source, NAMED, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(NAMED)}, or a file"
    raise UnknownNameError(f"unknown text source {source!r}; {hint}")


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Token ids to calibrate on, and how they came about."""

    ids: Int64[Tensor, "samples tokens"]
    sources: tuple[str, ...]
    seed: int
    bos: str
    packing: str = PACKING
    note: str = ""  # what differs from what was asked for

    @property
    def digest(self) -> str:
        """SHA-256 of shape and ids: a run is not resumed with other data."""
        content = f"{tuple(self.ids.shape)}".encode() + self.ids.contiguous().numpy().tobytes()
        return hashlib.sha256(content).hexdigest()

    @property
    def description(self) -> dict[str, object]:
        """Everything but the ids, for plans and records; JSON can hold it."""
        samples, tokens = self.ids.shape
        return {
            "sources": list(self.sources),
            "samples": samples,
            "tokens": tokens,
            "seed": self.seed,
            "bos": self.bos,
            "packing": self.packing,
            "note": self.note,
            "digest": self.digest,
        }


def calibration_samples(
    sources: Sequence[str],
    tokenizer: Tokenizer | None,
    *,
    samples: int,
    tokens: int,
    seed: int,
    split_at: str | None = None,
) -> Calibration:
    """`samples` rows of `tokens` token ids from the sources, packed as PACKING says.

    `tokenizer` may be None if every source holds token ids already. Only as many passages are
    tokenized as are needed. If the text ends early there are fewer rows, or one shorter row, and
    `note` says so. Raises DataError below two tokens in total.
    """
    if samples < 1 or tokens < 2:
        raise DataError(
            f"calibrate: found samples={samples}, tokens={tokens}; expected at least 1 and 2"
        )
    size = PASSAGE_PER_TOKEN * tokens
    found = [documents(source, split_at=split_at) for source in sources]
    passages = [passage for some in found for passage in _passages(some, size)]
    order = torch.randperm(len(passages), generator=torch.Generator().manual_seed(seed))
    parts, count = [], 0
    for index in order.tolist():
        parts.append(tokenize(passages[index], tokenizer).ids)
        count += len(parts[-1])
        if count >= samples * tokens:
            break
    if count < 2:
        raise DataError(f"{', '.join(sources)}: found {count} tokens to calibrate on; expected 2")
    width = min(tokens, count)
    rows = min(samples, count // width)
    asked = f"asked for {samples} x {tokens} tokens, the text has {count}: {rows} x {width} used"
    return Calibration(
        ids=torch.cat(parts)[: rows * width].view(rows, width),
        sources=tuple(sources),
        seed=seed,
        bos=describe_bos(tokenizer) if tokenizer else "as in the token ids",
        note="" if (rows, width) == (samples, tokens) else asked,
    )


def _passages(
    found: Sequence[Document | TokenDocument], size: int
) -> Iterator[Document | TokenDocument]:
    """Texts over `size` characters cut at the next line end, at twice `size` if there is none."""
    pattern = re.compile(rf"(?s).{{{size}}}[^\n]{{0,{size}}}\n?|.+")
    for document in found:
        if isinstance(document, TokenDocument) or len(document.text) <= size:
            yield document
        else:
            for number, piece in enumerate(pattern.findall(document.text), start=1):
                yield Document(name=f"{document.name}@{number}", text=piece)
