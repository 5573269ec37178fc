"""How a document longer than the context is cut, so that each token is scored exactly once.

A window holds at most `context` tokens. Its first token is context only: BOS where the document
has one, else the last token of the window before. Of the rest, `stride` tokens are new and scored;
what lies between was scored already and is there to be looked back at. With BOS every window begins
with it, because a model trained with BOS is another model without it.

    context 6, stride 3, no BOS      context 6, stride 6, with BOS
    a B C D E F                      ^ A B C D E
          d e f G H I                            ^ F G H I J       (capitals are scored)

The first picture is the sliding window of the transformers guide "Perplexity of fixed-length
models", token by token. At stride = context that guide leaves the first token of each window
unscored; here windows then share one token, or BOS, instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pennyweight.core.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Window:
    """Tokens start:stop of a document, of which the last `scored` are scored."""

    start: int
    stop: int
    scored: int
    needs_bos: bool  # BOS goes before token `start`


def windows(length: int, has_bos: bool, context: int, stride: int) -> Iterator[Window]:
    """The windows of a document of `length` tokens (its BOS counted). Raises DataError."""
    if context < 2:
        raise DataError(f"context is {context}; expected at least 2: a token and one to predict")
    if not 1 <= stride <= context:
        raise DataError(f"stride is {stride}; expected 1 to {context}, the context")
    if length < 2:
        return
    done = min(context, length)
    yield Window(start=0, stop=done, scored=done - 1, needs_bos=False)
    while done < length:
        full = done + min(stride, context - 1)
        stop = min(full, length)
        # The last window starts where a full one would: no extra context for its few tokens.
        start = full - context + has_bos
        yield Window(start=start, stop=stop, scored=stop - done, needs_bos=has_bos)
        done = stop
