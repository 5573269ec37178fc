"""What is odd about a calibration set: found before hours are spent on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from pennyweight.model.textfiles import Document, TokenDocument
from pennyweight.model.tokens import Tokenizer, added_bos

MOST_UNKNOWN = 0.001  # of the tokens: a stray character is no reason to speak
# Of the vocabulary, or of the tokens if they are fewer: text reaches ten times that (measured: 0.5
# of pylm's 1024 tokens, 0.14 of 65,536 tokens of English), random punctuation a tenth.
FEWEST_DISTINCT = 0.03


@dataclass(frozen=True, kw_only=True)
class Used:
    """What a calibration set was made from: the passages that were drawn, and their tokens."""

    passages: Sequence[Document | TokenDocument]
    tokens: Sequence[Int64[Tensor, " _"]]
    ids: Int64[Tensor, "samples tokens"]


def lint(used: Used, tokenizer: Tokenizer | None) -> tuple[str, ...]:
    """One line for each thing that is odd, with its number."""
    found = list(_repeated(used))
    if tokenizer is not None:
        found += [*_bos(used, tokenizer), *_padding(used, tokenizer), *_special(used, tokenizer)]
        found += [*_unknown(used, tokenizer), *_distinct(used, tokenizer)]
    return tuple(found)


def _repeated(used: Used) -> Iterator[str]:
    contents = [p.text.strip() if isinstance(p, Document) else p.ids for p in used.passages]
    if again := len(contents) - len(set(contents)):
        yield f"{again} of {len(contents)} passages repeat another one"


def _bos(used: Used, tokenizer: Tokenizer) -> Iterator[str]:
    if (bos := tokenizer.bos_token_id) is None:
        return
    starts = [tokens[:2].tolist() for tokens in used.tokens if len(tokens)]
    begun = sum(start[0] == bos for start in starts)
    if added_bos(tokenizer) and begun < len(starts):
        yield (
            f"{len(starts) - begun} of {len(starts)} passages do not begin with "
            f"{tokenizer.bos_token!r}, which the tokenizer puts before every text"
        )
    if not added_bos(tokenizer) and begun and not tokenizer.chat_template:
        yield (
            f"{begun} of {len(starts)} passages begin with {tokenizer.bos_token!r}, which the "
            "tokenizer does not add by itself"
        )
    if twice := sum(start == [bos, bos] for start in starts):
        yield f"{twice} of {len(starts)} passages begin with {tokenizer.bos_token!r} twice"


def _padding(used: Used, tokenizer: Tokenizer) -> Iterator[str]:
    """A padding token of its own, or runs of the one that ends texts."""
    pad: Any = tokenizer.pad_token_id
    if pad is None:
        return
    is_pad = used.ids.eq(pad)
    if pad in (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id):
        is_pad = is_pad[:, 1:] & is_pad[:, :-1]
    if count := int(is_pad.sum()):
        yield f"{count / used.ids.numel():.2%} of the tokens are padding ({tokenizer.pad_token!r})"


def _special(used: Used, tokenizer: Tokenizer) -> Iterator[str]:
    texts = [p.text for p in used.passages if isinstance(p, Document)]
    special = sorted(set(map(str, tokenizer.all_special_tokens)))
    hit = [next((token for token in special if token in text), None) for text in texts]
    if found := [token for token in hit if token]:
        yield (
            f"{len(found)} of {len(texts)} passages spell out a special token ({found[0]!r}), "
            "which the model reads as the token itself"
        )


def _unknown(used: Used, tokenizer: Tokenizer) -> Iterator[str]:
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        return
    share = (used.ids == unknown).float().mean().item()
    if share > MOST_UNKNOWN:
        yield f"{share:.1%} of the tokens are {tokenizer.unk_token!r}, for what it cannot spell"


def _distinct(used: Used, tokenizer: Tokenizer) -> Iterator[str]:
    distinct, possible = len(torch.unique(used.ids)), min(len(tokenizer), used.ids.numel())
    if distinct < FEWEST_DISTINCT * possible:
        yield (
            f"only {distinct} different tokens in {used.ids.numel()} (the tokenizer knows "
            f"{len(tokenizer)}): is this text of the kind the model is for?"
        )
