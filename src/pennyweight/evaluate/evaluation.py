"""The verdict on a model: perplexity, bits per byte, and how far it is from its reference."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

import torch
from torch import nn

from pennyweight.core.errors import DataError
from pennyweight.evaluate.intervals import CONFIDENCE, RESAMPLES, Interval, bootstrap_ratios
from pennyweight.evaluate.logits import LogitsFunction
from pennyweight.evaluate.scores import Scores, Sums, limit_tokens, score_documents
from pennyweight.model.attention import AttentionFormats
from pennyweight.model.tokens import BosRule, Tokens

DEFAULT_CONTEXT = 512
FEW_DOCUMENTS = 10
"""Below this many documents their windows are resampled instead."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to measure. Two numbers compare only if all of these are equal."""

    context: int | None = None  # tokens a window; None: 512, or less if the model has less
    stride: int | None = None  # new tokens a window; None: context, no overlap
    bos: BosRule = "auto"
    max_tokens: int | None = None  # scored; documents are taken in order until then
    document_tokens: int | None = None  # only the first ones of each document; None: all
    seed: int = 0  # of the bootstrap
    resamples: int = RESAMPLES


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The same documents through a reference model."""

    perplexity: Interval  # of the reference
    bits_per_byte: Interval | None  # of the reference
    perplexity_change_percent: Interval  # of the model against the reference, paired
    kl_nats: Interval  # mean over tokens of KL(reference || model)
    top1_agreement_percent: Interval


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was measured, on what, and how sure it is."""

    perplexity: Interval
    bits_per_byte: Interval | None  # None: token ids without their text
    comparison: Comparison | None
    documents: int
    skipped: int  # documents of fewer than two tokens
    windows: int
    tokens: int  # scored
    bytes: float  # UTF-8 bytes of the scored tokens
    unit: Literal["document", "window"]  # what the bootstrap resamples
    confidence: float
    settings: Settings
    digest: str = ""  # SHA-256 of the token ids: equal for equal data
    model: str = ""
    reference: str = ""
    data: tuple[str, ...] = ()
    split_at: str | None = None
    bos: str = ""  # the BOS rule in words
    attention: AttentionFormats = field(default_factory=AttentionFormats)  # not of the reference
    kv_cache_bits: float | None = None  # per number in the cache with its scales; None: unrounded

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON; an interval that could not be computed has null ends."""
        return {key: plain(value) for key, value in asdict(self).items()}


def evaluate_tokens(
    model: nn.Module | LogitsFunction,
    documents: Sequence[Tokens],
    *,
    reference: nn.Module | LogitsFunction | None = None,
    settings: Settings | None = None,
) -> Evaluation:
    """Measure a model that is in memory on tokenized documents; see score_documents for both.

    `settings.context` is 512 unless given; the caller knows what the model's limit is. The caller
    also has the names that a report needs: `dataclasses.replace(evaluation, model=..., data=...)`.
    """
    settings = resolved(settings or Settings())
    if settings.resamples < 100:
        raise DataError(f"resamples is {settings.resamples}; expected at least 100")
    documents = limited(documents, settings)
    assert settings.context is not None
    scores = score_documents(
        model, documents, context=settings.context, stride=settings.stride, reference=reference
    )
    return replace(summarize(scores, settings), digest=digest_of(documents))


def limited(documents: Sequence[Tokens], settings: Settings) -> Sequence[Tokens]:
    """What `document_tokens` and `max_tokens` leave of the documents. Raises DataError."""
    if settings.document_tokens is not None:
        if settings.document_tokens < 2:
            raise DataError(f"document_tokens is {settings.document_tokens}; expected at least 2")
        documents = [document.first(settings.document_tokens) for document in documents]
    if settings.max_tokens is not None:
        documents = limit_tokens(documents, settings.max_tokens)
    return documents


def resolved(settings: Settings) -> Settings:
    """The same settings with the defaults spelled out, so that a report has no gaps."""
    context = DEFAULT_CONTEXT if settings.context is None else settings.context
    stride = context if settings.stride is None else settings.stride
    return replace(settings, context=context, stride=stride)


def digest_of(documents: Sequence[Tokens]) -> str:
    """SHA-256 of the token ids."""
    content = hashlib.sha256()
    for document in documents:
        content.update(f"{len(document.ids)}:".encode() + document.ids.numpy().tobytes())
        if document.prompt is not None:
            content.update(document.prompt.digest().encode())
    return content.hexdigest()


def summarize(scores: Scores, settings: Settings) -> Evaluation:
    """Values and intervals of what was scored; what only the caller knows is left empty."""
    by_document = scores.documents
    by_windows = len(by_document.tokens) < FEW_DOCUMENTS
    sums = scores.windows if by_windows else by_document
    intervals = _intervals(sums, settings)
    return Evaluation(
        perplexity=intervals["nll"].map(_exp),
        bits_per_byte=intervals.get("bits"),
        comparison=_comparison(intervals) if scores.compared else None,
        documents=len(by_document.tokens),
        skipped=scores.skipped,
        windows=len(scores.windows.tokens),
        tokens=int(sums.tokens.sum()),
        bytes=round(sums.bytes.sum().item(), 3),
        unit="window" if by_windows else "document",
        confidence=CONFIDENCE,
        settings=settings,
    )


def _intervals(sums: Sums, settings: Settings) -> dict[str, Interval]:
    """Every ratio of sums from the same draws, so that all of them are paired."""
    ratios = {
        "nll": (sums.nll, sums.tokens),
        "reference_nll": (sums.reference_nll, sums.tokens),
        "change": (sums.nll - sums.reference_nll, sums.tokens),
        "kl": (sums.kl, sums.tokens),
        "agreement": (100 * sums.agreements, sums.tokens),
    }
    if sums.bytes.sum() > 0:
        ratios["bits"] = (sums.nll / math.log(2), sums.bytes)
        ratios["reference_bits"] = (sums.reference_nll / math.log(2), sums.bytes)
    found = bootstrap_ratios(
        torch.stack([numerator for numerator, _ in ratios.values()]),
        torch.stack([denominator for _, denominator in ratios.values()]),
        seed=settings.seed,
        resamples=settings.resamples,
    )
    return dict(zip(ratios, found, strict=True))


def _comparison(intervals: dict[str, Interval]) -> Comparison:
    return Comparison(
        perplexity=intervals["reference_nll"].map(_exp),
        bits_per_byte=intervals.get("reference_bits"),
        perplexity_change_percent=intervals["change"].map(lambda x: 100 * (_exp(x) - 1)),
        kl_nats=intervals["kl"],
        top1_agreement_percent=intervals["agreement"],
    )


def _exp(x: float) -> float:
    """e to the x; the perplexity of a broken model can exceed what float64 holds."""
    return math.exp(x) if x < 709 else math.inf


def plain(value: object) -> object:
    """For JSON: tuples as lists, and numbers that are not finite as null."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return [plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
