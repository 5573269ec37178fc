"""Run a model, and a reference beside it, over documents: one row of sums for each window."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float64, Int64
from torch import Tensor, nn

from pennyweight.core.errors import DataError, NumericalError
from pennyweight.evaluate.logits import (
    LogitsFunction,
    last_logits,
    prompt_logits,
    token_divergence,
    token_nll,
)
from pennyweight.evaluate.windows import Window, windows
from pennyweight.model.tokens import Tokens

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Sums:
    """Sums over scored tokens. The last three are zero if there is no reference."""

    tokens: Float64[Tensor, " units"]
    bytes: Float64[Tensor, " units"]  # UTF-8 bytes of the scored tokens
    nll: Float64[Tensor, " units"]  # nats
    reference_nll: Float64[Tensor, " units"]  # nats
    kl: Float64[Tensor, " units"]  # nats, reference || model
    agreements: Float64[Tensor, " units"]  # tokens on which both have the same top choice

    def grouped(self, group: Int64[Tensor, " units"]) -> Sums:
        """The sums over units that have the same group number."""
        count = int(group.max()) + 1 if len(group) else 0
        return Sums(
            **{
                field.name: torch.zeros(count, dtype=torch.float64).index_add_(
                    0, group, getattr(self, field.name)
                )
                for field in fields(self)
            }
        )


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What was scored, window by window."""

    windows: Sums
    document: Int64[Tensor, " units"]  # which document a window is of, counted from 0
    skipped: int  # documents of fewer than two tokens
    compared: bool  # there was a reference

    @property
    def documents(self) -> Sums:
        """The same sums, document by document."""
        return self.windows.grouped(self.document)


@torch.inference_mode()
def score_documents(
    model: nn.Module | LogitsFunction,
    documents: Sequence[Tokens],
    *,
    context: int,
    stride: int | None = None,
    reference: nn.Module | LogitsFunction | None = None,
) -> Scores:
    """Score every token of the documents that has one before it, once.

    Models are transformers models in eval mode, or functions of input_ids [1, tokens] that return
    logits [1, tokens, vocab]. `stride` is `context` unless given; see windows.py.
    Raises DataError if no document has two tokens or the vocabularies differ, and NumericalError
    naming the document for logits that are not finite.
    """
    models = [model] if reference is None else [model, reference]
    for module in models:
        assert not (isinstance(module, nn.Module) and module.training), "call .eval() first"
    rows, owners, usable = [], [], [d for d in documents if len(d.ids) >= 2]
    for number, document in enumerate(usable):
        for window in _windows(document, context, stride or context):
            rows.append(_score(models, document, window))
            owners.append(number)
        log.debug("%s: %d tokens", document.name, len(document.ids))
    if not rows:
        raise DataError(f"none of {len(documents)} documents has two tokens; expected longer texts")
    columns = torch.tensor(rows, dtype=torch.float64).T
    return Scores(
        windows=Sums(**{f.name: column for f, column in zip(fields(Sums), columns, strict=True)}),
        document=torch.tensor(owners),
        skipped=len(documents) - len(usable),
        compared=reference is not None,
    )


def limit_tokens(documents: Sequence[Tokens], max_tokens: int) -> list[Tokens]:
    """The first documents, until `max_tokens` tokens are scored; the last one is cut to fit."""
    if max_tokens < 1:
        raise DataError(f"max_tokens is {max_tokens}; expected at least 1")
    kept, left = [], max_tokens
    for document in documents:
        if left <= 0:
            break
        kept.append(document.first(left + 1))  # the first token is not scored
        left -= max(0, len(kept[-1].ids) - 1)
    return kept


def _windows(document: Tokens, context: int, stride: int) -> Iterator[Window]:
    """One window if there are images. Raises DataError if that is too long."""
    length = len(document.ids)
    if document.prompt is None:
        yield from windows(length, document.has_bos, context, stride)
        return
    if length > context:
        raise DataError(
            f"{document.name}: {length} tokens with its images, which are not cut, and the context "
            f"is {context}; give a longer one"
        )
    yield Window(start=0, stop=length, scored=length - 1, needs_bos=False)


def _score(
    models: Sequence[nn.Module | LogitsFunction], document: Tokens, window: Window
) -> list[float]:
    """One row of Sums."""
    logits, targets, scored_bytes = _logits(models, document, window)
    nll = [token_nll(each, targets.to(each.device)).sum().item() for each in logits]
    compared = [0.0, 0.0, 0.0]
    if len(models) == 2:
        kl, agreement = token_divergence(logits[1].to(logits[0].device), logits[0])
        compared = [nll[1], kl.sum().item(), agreement.sum().item()]
    if not all(math.isfinite(each) for each in [nll[0], *compared]):
        which = "reference" if math.isfinite(nll[0]) and not math.isfinite(nll[-1]) else "model"
        raise NumericalError(
            f"{document.name}: the {which} gives logits that are not finite in tokens "
            f"{window.start} to {window.stop}; look for overflowing or missing weights"
        )
    return [float(len(targets)), scored_bytes.sum().item(), nll[0], *compared]


def _logits(
    models: Sequence[nn.Module | LogitsFunction], document: Tokens, window: Window
) -> tuple[list[Tensor], Tensor, Tensor]:
    """(logits of each model, the tokens they are about, their bytes)."""
    prompt = document.prompt
    if prompt is not None:
        at, asked = prompt.targets(), [each for each in models if isinstance(each, nn.Module)]
        assert len(asked) == len(models), "a function of token ids takes no images"
        logits = [prompt_logits(model, prompt, at - 1) for model in asked]
        return logits, document.ids[at], document.byte_counts[at]
    ids = document.ids[window.start : window.stop]
    if window.needs_bos:
        ids = torch.cat([document.ids[:1], ids])
    # The last token of a window has no target; its logits are dropped.
    logits = [last_logits(model, ids[None], window.scored + 1)[:-1] for model in models]
    counts = document.byte_counts[window.stop - window.scored : window.stop]
    return logits, ids[-window.scored :], counts
