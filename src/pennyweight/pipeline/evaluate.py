"""Measure a model on disk, alone or against the model it was made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from pennyweight.core.errors import DataError
from pennyweight.evaluate import DEFAULT_CONTEXT, Evaluation, Settings, evaluate_tokens
from pennyweight.evaluate.evaluation import digest_of, limited, resolved
from pennyweight.model.attention import AttentionFormats, round_attention
from pennyweight.model.load import load_model, load_tokenizer, vocabulary
from pennyweight.model.pictures import has_images
from pennyweight.model.resolve import resolve_model
from pennyweight.model.samples import pictured_prompts
from pennyweight.model.text import Document, TokenDocument, calibration_samples, documents
from pennyweight.model.tokens import (
    Tokenizer,
    Tokens,
    check_same_tokenizer,
    describe_bos,
    tokenize,
    tokens_of,
)

DEFAULT_DATA = ("stdlib-heldout",)
CALIBRATION_SAMPLES = 32  # of as many tokens as a window; static scales need maxima, not sums


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A model, a reference beside it, and the tokens both read: loaded and checked, not yet run."""

    model: nn.Module
    reference: nn.Module | None
    tokens: Sequence[Tokens]
    settings: Settings  # complete: context and stride are numbers
    names: Mapping[str, Any]  # fields of the Evaluation that only the caller of `prepare` knows

    @property
    def digest(self) -> str:
        """Of the tokens that are scored, as in the Evaluation."""
        return digest_of(limited(self.tokens, self.settings))

    def __call__(self) -> Evaluation:
        found = evaluate_tokens(
            self.model, self.tokens, reference=self.reference, settings=self.settings
        )
        return replace(found, **self.names)


def evaluate(
    model: str | Path,
    *,
    against: str | Path | None = None,
    data: Sequence[str] = DEFAULT_DATA,
    split_at: str | None = None,
    settings: Settings | None = None,
    attention: AttentionFormats | None = None,
) -> Evaluation:
    """Perplexity and bits per byte of a model; with `against`, also its distance from a reference.

    Raises what `prepare` raises, and NumericalError naming the document for logits that are not
    finite.
    """
    return prepare(
        model, against=against, data=data, split_at=split_at, settings=settings, attention=attention
    )()


def prepare(
    model: str | Path,
    *,
    against: str | Path | None = None,
    data: Sequence[str] = DEFAULT_DATA,
    split_at: str | None = None,
    settings: Settings | None = None,
    attention: AttentionFormats | None = None,
) -> Measurement:
    """Everything up to the measurement.

    If all data are token ids no tokenizer is needed, and bits per byte are unknown. `attention`
    rounds the model's keys, values and operands of attention, not those of the reference.
    Raises DataError for a text or window that cannot be used or tokenizers that differ, and what
    `round_attention` raises for formats that do not fit the model.
    """
    settings, attention = settings or Settings(), attention or AttentionFormats()
    attention.parsed()  # an unknown name before anything is loaded
    pictured = [source for source in data if has_images(source)]
    text = [source for source in data if source not in pictured]
    found = [document for source in text for document in documents(source, split_at=split_at)]
    pretokenized = not pictured and all(isinstance(one, TokenDocument) for one in found)
    if pretokenized and settings.bos != "auto":
        raise DataError(f"bos is {settings.bos!r}, but token ids are taken as they are; use 'auto'")
    tokenizer = None if pretokenized else load_tokenizer(model)
    tokens = tokenized(found, tokenizer, settings)
    if against is not None and tokenizer is not None:
        check_same_tokenizer(tokenizer, load_tokenizer(against), found[: len(tokens)])
    loaded = load_model(model)
    reference = None if against is None else load_model(against)
    if pictured and tokenizer is not None:
        tokens += _pictured(pictured, loaded, resolve_model(model), tokenizer)
        settings = _roomy(settings, tokens)
    settings = resolved(fitting([loaded, reference], settings))
    check_vocabulary(vocabulary(loaded), tokens)
    calibration = _calibration(model, attention, settings) if attention.static else None
    bits = round_attention(loaded, attention, calibration)
    names = {
        "model": str(model), "reference": "" if against is None else str(against),
        "data": tuple(data), "split_at": split_at, "attention": attention, "kv_cache_bits": bits,
        "bos": describe_bos(tokenizer, settings.bos) if tokenizer else "as in the token ids",
    }  # fmt: skip
    return Measurement(
        model=loaded, reference=reference, tokens=tokens, settings=settings, names=names
    )


def _pictured(
    sources: Sequence[str], model: nn.Module, directory: Path, tokenizer: Tokenizer
) -> list[Tokens]:
    """The documents of files with images."""
    return [
        tokens_of(name, prompt, tokenizer)
        for source in sources
        for name, prompt in pictured_prompts(source, model, directory)
    ]


def _roomy(settings: Settings, tokens: Sequence[Tokens]) -> Settings:
    """With a context that the longest document with images fits in, if none was asked for."""
    longest = max((len(each.ids) for each in tokens if each.prompt is not None), default=0)
    if settings.context is not None or longest <= DEFAULT_CONTEXT:
        return settings
    return replace(settings, context=longest)


def _calibration(model: str | Path, attention: AttentionFormats, settings: Settings):
    """Token ids [samples, tokens] on which static scales are found."""
    sources = attention.calibrate
    tokenizer = (
        None if all(source.endswith(".json") for source in sources) else load_tokenizer(model)
    )
    assert settings.context is not None, "made to fit the models before"
    return calibration_samples(
        sources, tokenizer, samples=CALIBRATION_SAMPLES, tokens=settings.context, seed=0
    ).ids


def tokenized(
    found: Sequence[Document | TokenDocument],
    tokenizer: Tokenizer | None,
    settings: Settings,
) -> list[Tokens]:
    """Only as many documents as `max_tokens` needs; tokenizing the rest could take minutes."""
    tokens, scored = [], 0
    for document in found:
        tokens.append(tokenize(document, tokenizer, settings.bos))
        kept = tokens[-1].first(settings.document_tokens or len(tokens[-1].ids))
        scored += max(0, len(kept.ids) - 1)
        if settings.max_tokens is not None and scored >= settings.max_tokens:
            break
    return tokens


def check_vocabulary(rows: int, tokens: Sequence[Tokens]) -> None:
    """Raises DataError if a token has no row in an embedding of so many."""
    for document in tokens:
        if len(document.ids) and (largest := int(document.ids.max())) >= rows:
            raise DataError(
                f"{document.name}: token id {largest} is outside the model's vocabulary of {rows}; "
                "is the tokenizer of another model?"
            )


def fitting(models: Sequence[object], settings: Settings) -> Settings:
    """Settings with a context that every model can take. Raises DataError if asked for more."""
    limit = min((each for model in models if (each := _positions(model))), default=None)
    if settings.context is None:
        return replace(settings, context=min(DEFAULT_CONTEXT, limit or DEFAULT_CONTEXT))
    if limit is not None and settings.context > limit:
        raise DataError(
            f"context is {settings.context}, but the model takes {limit} tokens at most"
        )
    return settings


def _positions(model: object) -> int | None:
    """The longest text a model takes, where its config says."""
    config = getattr(model, "config", None)
    if isinstance(config, PreTrainedConfig):  # of the part that reads text, if it sees images too
        config = config.get_text_config()
    return getattr(config, "max_position_embeddings", None)
