"""A document as the model sees it: token ids, the BOS rule, and the bytes each token stands for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float64, Int64
from torch import Tensor
from transformers import PreTrainedTokenizerBase as Tokenizer

from pennyweight.core.errors import DataError
from pennyweight.model.prompt import Prompt
from pennyweight.model.textfiles import Document, TokenDocument

BosRule = Literal["auto", "always", "never"]
"""Which documents begin with BOS: those the tokenizer gives one; all; none."""


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """One tokenized document. `byte_counts` sums to the UTF-8 bytes of its text."""

    name: str
    ids: Int64[Tensor, " tokens"]  # the leading BOS included
    has_bos: bool
    byte_counts: Float64[Tensor, " tokens"]  # zero for BOS and other added tokens
    prompt: Prompt | None = None  # the same ids and their images, which are never cut

    def first(self, count: int) -> Tokens:
        """The first `count` tokens; all, if there are images."""
        if self.prompt is not None:
            return self
        ids, byte_counts = self.ids[:count], self.byte_counts[:count]
        return Tokens(name=self.name, ids=ids, has_bos=self.has_bos, byte_counts=byte_counts)


def tokenize(
    document: Document | TokenDocument,
    tokenizer: Tokenizer | None,
    bos: BosRule = "auto",
) -> Tokens:
    """The tokens of a document, with BOS by the rule.

    Without a tokenizer a document must hold token ids, which are taken as they are and have no
    bytes. Raises DataError if the rule asks for a BOS that the tokenizer lacks, or an id is unknown
    to it.
    """
    if tokenizer is None:
        return _bare(document)
    if isinstance(document, TokenDocument):
        ids, byte_counts = list(document.ids), _decoded_bytes(document, tokenizer)
    else:
        ids, byte_counts = _encode(document.text, tokenizer, bos != "never")
    has_bos = bool(ids) and ids[0] == tokenizer.bos_token_id
    if bos == "always" and not has_bos:
        if tokenizer.bos_token_id is None:
            raise DataError("bos is 'always', but the tokenizer has no BOS token; use 'auto'")
        ids, byte_counts, has_bos = [tokenizer.bos_token_id, *ids], [0, *byte_counts], True
    # A text never begins with the BOS id unless someone put it there: here a pre-tokenized one.
    if bos == "never" and has_bos:
        ids, byte_counts, has_bos = ids[1:], byte_counts[1:], False
    return Tokens(
        name=document.name,
        ids=torch.tensor(ids, dtype=torch.int64),
        has_bos=has_bos,
        byte_counts=torch.tensor(byte_counts, dtype=torch.float64),
    )


def tokens_of(name: str, prompt: Prompt, tokenizer: Tokenizer) -> Tokens:
    """A prompt as a document; its bytes are those of its text, shared evenly."""
    text = [int(i) for i in prompt.without_images().ids]
    written = str(tokenizer.decode(text, skip_special_tokens=True))
    counts = torch.zeros(len(prompt.ids), dtype=torch.float64)
    is_text = slice(None) if prompt.is_text is None else prompt.is_text
    shares = _even_bytes(text, tokenizer, len(written.encode("utf-8", "replace")))
    counts[is_text] = torch.tensor(shares, dtype=torch.float64)
    return Tokens(
        name=name, ids=prompt.ids, has_bos=bool(prompt.ids[0] == tokenizer.bos_token_id),
        byte_counts=counts, prompt=prompt if prompt.images else None,
    )  # fmt: skip


def _bare(document: Document | TokenDocument) -> Tokens:
    if isinstance(document, Document):
        raise DataError(f"{document.name}: is text, and the model has no tokenizer to read it with")
    ids = torch.tensor(document.ids, dtype=torch.int64)
    byte_counts = torch.zeros(len(ids), dtype=torch.float64)
    return Tokens(name=document.name, ids=ids, has_bos=False, byte_counts=byte_counts)


def describe_bos(tokenizer: Tokenizer, bos: BosRule = "auto") -> str:
    """The BOS rule in words, for reports."""
    if bos == "never":
        return "never"
    if bos == "always":
        return f"always {tokenizer.bos_token!r}"
    if added_bos(tokenizer):
        return f"auto: the tokenizer adds {tokenizer.bos_token!r}"
    return "auto: the tokenizer adds none"


def added_bos(tokenizer: Tokenizer) -> list[int]:
    """The BOS that the tokenizer puts before a text, as a list of one id or none."""
    first = tokenizer("a")["input_ids"][:1]
    return first if first == [tokenizer.bos_token_id] else []


def check_same_tokenizer(
    tokenizer: Tokenizer,
    reference: Tokenizer,
    documents: Sequence[Document | TokenDocument],
) -> None:
    """Raise DataError unless both have one vocabulary and cut these documents into the same tokens.

    The files may well differ: another serialization of the same tokenizer is no obstacle.
    """
    ours, theirs = tokenizer.get_vocab(), reference.get_vocab()
    if ours != theirs:
        different = len(dict(ours.items() ^ theirs.items()))
        raise DataError(
            f"the tokenizers differ in {different} tokens ({len(ours)} and {len(theirs)} in all); "
            "models are compared token by token, so both need the same tokenizer"
        )
    for document in documents:
        if isinstance(document, Document):
            a, b = (_encode(document.text, t, True)[0] for t in (tokenizer, reference))
            if a != b:
                at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), -1)
                raise DataError(
                    f"{document.name}: the tokenizers have one vocabulary but cut this text "
                    f"differently ({len(a)} and {len(b)} tokens, first difference at token {at}); "
                    "compare their normalizers, pre-tokenizers and special tokens"
                )


def _encode(text: str, tokenizer: Tokenizer, special: bool) -> tuple[list[int], list[float]]:
    # verbose=False: a text longer than the model's context is cut into windows later.
    encoding = tokenizer(
        text,
        add_special_tokens=special,
        return_offsets_mapping=bool(tokenizer.is_fast),
        verbose=False,
    )
    ids = encoding["input_ids"]
    if not tokenizer.is_fast:
        return ids, _even_bytes(ids, tokenizer, len(text.encode()))
    return ids, _offset_bytes(text, encoding["offset_mapping"])


def _offset_bytes(text: str, offsets: list[tuple[int, int]]) -> list[float]:
    """Bytes of each token: from where the tokens before it end to where it ends.

    The last token with text takes what is left, so that the counts sum to the bytes of the text.
    """
    ends = [0]  # byte position after each character
    for character in text:
        ends.append(ends[-1] + len(character.encode("utf-8", "surrogatepass")))
    last = max((i for i, (start, stop) in enumerate(offsets) if stop > start), default=None)
    counts, position = [], 0
    for index, (_, stop) in enumerate(offsets):
        # Some tokenizers give overlapping offsets, so never step back.
        end = ends[-1] if index == last else max(position, ends[stop])
        counts.append(float(end - position))
        position = end
    return counts


def _decoded_bytes(document: TokenDocument, tokenizer: Tokenizer) -> list[float]:
    ids = list(document.ids)
    if unknown := [i for i in ids if i >= len(tokenizer)]:
        raise DataError(
            f"{document.name}: token id {unknown[0]} is not in the tokenizer's vocabulary of "
            f"{len(tokenizer)}; was the text tokenized for another model?"
        )
    text = str(tokenizer.decode(ids, skip_special_tokens=True))
    return _even_bytes(ids, tokenizer, len(text.encode("utf-8", "replace")))


def _even_bytes(ids: list[int], tokenizer: Tokenizer, total: int) -> list[float]:
    """Without offsets only the total is known: all tokens but the special ones share it."""
    special = set(tokenizer.all_special_ids)
    share = total / max(1, sum(i not in special for i in ids))
    return [0.0 if i in special else share for i in ids]
