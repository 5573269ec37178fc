"""Text sources, and the calibration samples made from them.

A source is a name of `calibration.CALIBRATIONS` (`stdlib`: Python's own library, no download), or
the path of a file. For calibration it may also be a mix of sources in given shares.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor

from pennyweight.core.errors import DataError, UnknownNameError
from pennyweight.model.calibration import CALIBRATIONS, Request
from pennyweight.model.calibration.base import seeded
from pennyweight.model.calibration.chat import as_chat
from pennyweight.model.calibration.lint import Used, lint
from pennyweight.model.calibration.mix import apportion, parse_mix
from pennyweight.model.prompt import Prompt, prompts
from pennyweight.model.textfiles import Document, TokenDocument, cut, read_file
from pennyweight.model.tokens import Tokenizer, describe_bos, tokenize

__all__ = [
    "Calibration",
    "Document",
    "Request",
    "TokenDocument",
    "calibration_samples",
    "documents",
    "draw",
]

# Characters a token: a passage is then about one row, so that rows come from many places in the
# text even if the text is one long file, and no more of it is tokenized than is used.
PASSAGE_PER_TOKEN = 4
PACKING = (
    f"texts over {PASSAGE_PER_TOKEN} x tokens characters are cut into passages at the next line "
    "end; passages are shuffled, tokenized with the tokenizer's own special tokens, joined, and "
    "cut into rows"
)
CHAT = "every passage is put through the chat template, as its own turns or as one of the user; "
MIX = "each source of the mix is packed by itself, and their rows are shuffled; "


def documents(
    source: str, *, split_at: str | None = None, request: Request | None = None
) -> list[Document] | list[TokenDocument]:
    """The documents of a source, in their order there; `split_at` cuts every text further.

    Raises UnknownNameError for a name nobody knows and DataError for a file that cannot be used, or
    a source that makes up its text where there is no request to make it up for.
    """
    name, _, argument = source.partition(":")
    if name not in CALIBRATIONS or Path(source).is_file():
        found = _file(source)
    elif CALIBRATIONS[name].generated:
        if request is None:
            raise DataError(f"{source}: is made up for calibration; name a text to measure on")
        return CALIBRATIONS[name](argument, request)
    else:
        found = CALIBRATIONS[name](argument, request)
    if split_at is None:
        return found
    texts = [document for document in found if isinstance(document, Document)]
    if len(texts) < len(found):
        raise DataError(f"{source}: holds token ids, which split_at cannot cut; leave it out")
    return cut(texts, split_at)


def _file(source: str) -> list[Document] | list[TokenDocument]:
    path = Path(source)
    if path.is_file():
        return read_file(path)
    if path.is_dir():
        raise DataError(f"{source}: is a folder; name a file in it, or several files")
    if path.suffix or len(path.parts) > 1:
        raise DataError(f"{source}: no such file (looked in {Path.cwd()})")
    close = difflib.get_close_matches(source, CALIBRATIONS, n=1)
    hint = (
        f"did you mean {close[0]!r}?" if close else f"known: {', '.join(CALIBRATIONS)}, or a file"
    )
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
    warnings: tuple[str, ...] = ()  # what is odd about the text
    pictured: tuple[Prompt, ...] = ()  # samples of files with images, beside the rows of text

    @property
    def rows(self) -> Tensor | list[Prompt]:
        """All samples, as the model is called with them."""
        return [*prompts(self.ids), *self.pictured] if self.pictured else self.ids

    @property
    def largest_id(self) -> int:
        return max(int(row.ids.max()) for row in prompts(self.rows))

    @property
    def digest(self) -> str:
        """SHA-256 of shape, ids and images: a run is not resumed with other data."""
        content = f"{tuple(self.ids.shape)}".encode() + self.ids.contiguous().numpy().tobytes()
        content += "".join(prompt.digest() for prompt in self.pictured).encode()
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
            "warnings": list(self.warnings),
            **self._images(),
            "digest": self.digest,
        }

    def _images(self) -> dict[str, object]:
        if not self.pictured:
            return {}
        return {
            "whole_samples": len(self.pictured),
            "whole_tokens": sum(len(prompt.ids) for prompt in self.pictured),
            "with_images": sum(bool(prompt.images) for prompt in self.pictured),
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
    """`draw` for text that exists already, and no model."""
    request = Request(
        tokenizer=tokenizer, samples=samples, tokens=tokens, seed=seed, split_at=split_at
    )
    return draw(sources, request)


def draw(sources: Sequence[str], request: Request) -> Calibration:
    """`samples` rows of `tokens` token ids from the sources, packed as PACKING says.

    The passages of several sources are shuffled together; a mix (`a.txt*0.7+stdlib*0.3`) gives
    whole rows of each in its shares, and stands alone. Only as many passages are tokenized as are
    needed. If the text ends early there are fewer rows, or one shorter row, and `note` says so.
    Raises DataError below two tokens in total.
    """
    if request.samples < 1 or request.tokens < 2:
        raise DataError(
            f"calibrate: found samples={request.samples}, tokens={request.tokens}; expected at "
            "least 1 and 2"
        )
    shares = [parse_mix(source) for source in sources]
    if len(sources) == 1 and shares[0]:
        used, note = _mixed(sources[0], shares[0], request)
    elif any(shares):
        raise DataError(
            f"{', '.join(sources)}: a mix is the whole calibration set; put the other sources into "
            "it, with their weights"
        )
    else:
        used, note = _pooled(sources, request)
    chat = CHAT if request.chat_template else ""
    return Calibration(
        ids=used.ids,
        sources=tuple(sources),
        seed=request.seed,
        bos=_bos(request),
        packing=(MIX if any(shares) else "") + chat + PACKING,
        note=note,
        warnings=lint(used, request.tokenizer),
    )


def _bos(request: Request) -> str:
    if request.tokenizer is None:
        return "as in the token ids"
    return "as in the chat template" if request.chat_template else describe_bos(request.tokenizer)


def _pooled(sources: Sequence[str], request: Request) -> tuple[Used, str]:
    """Rows of the passages of all sources, and what there is to note of them."""
    samples, tokens = request.samples, request.tokens
    size = PASSAGE_PER_TOKEN * tokens
    found = [documents(s, split_at=request.split_at, request=request) for s in sources]
    passages = [p for some in found for p in _passages(some, size, request.chat_template)]
    generator = torch.Generator().manual_seed(request.seed)
    order = torch.randperm(len(passages), generator=generator)
    parts, used, count = [], [], 0
    for index in order.tolist():
        passage = passages[index]
        if request.chat_template:
            passage = as_chat(passage, request.tokenizer)
        parts.append(tokenize(passage, request.tokenizer).ids)
        used.append(passages[index])
        count += len(parts[-1])
        if count >= samples * tokens:
            break
    if count < 2:
        raise DataError(f"{', '.join(sources)}: found {count} tokens to calibrate on; expected 2")
    width = min(tokens, count)
    rows = min(samples, count // width)
    asked = f"asked for {samples} x {tokens} tokens, the text has {count}: {rows} x {width} used"
    ids = torch.cat(parts)[: rows * width].view(rows, width)
    note = "" if (rows, width) == (samples, tokens) else asked
    return Used(passages=used, tokens=parts, ids=ids), note


def _mixed(mix: str, shares: dict[str, float], request: Request) -> tuple[Used, str]:
    """As `_pooled`, with a fixed number of rows of each source."""
    parts, notes = [], []
    for source, count in apportion(request.samples, shares, mix).items():
        used, note = _pooled([source], replace(request, samples=count))
        if used.ids.shape[1] < request.tokens:
            raise DataError(f"{mix}: {source} does not fill a sample of {request.tokens} tokens")
        parts.append(used)
        notes += [f"{source}: {note}"] if note else []
    ids = torch.cat([part.ids for part in parts])
    order = torch.randperm(len(ids), generator=seeded(request.seed, "rows of the mix"))
    whole = Used(
        passages=[passage for part in parts for passage in part.passages],
        tokens=[tokens for part in parts for tokens in part.tokens],
        ids=ids[order],
    )
    return whole, "; ".join(notes)


def _passages(
    found: Sequence[Document | TokenDocument], size: int, chat: bool = False
) -> Iterator[Document | TokenDocument]:
    """Texts over `size` characters cut at the next line end, at twice `size` if there is none.

    For a chat template, conversations stay whole.
    """
    pattern = re.compile(rf"(?s).{{{size}}}[^\n]{{0,{size}}}\n?|.+")
    for document in found:
        whole = isinstance(document, TokenDocument) or len(document.text) <= size
        if whole or (chat and document.messages):
            yield document
        else:
            for number, piece in enumerate(pattern.findall(document.text), start=1):
                yield Document(name=f"{document.name}@{number}", text=piece)
