"""A model on disk made ready to answer: weights, tokenizer, limit, and the tokens that end it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from pennyweight.core import Mapper, Serial
from pennyweight.core.errors import UnsupportedError
from pennyweight.model.attention import AttentionFormats, round_attention
from pennyweight.model.checkpoint import Checkpoint
from pennyweight.model.load import load_model, load_tokenizer
from pennyweight.model.resolve import resolve_model
from pennyweight.model.text import calibration_samples
from pennyweight.model.tokens import Tokenizer

UNLIMITED = 2048  # tokens taken at a time where neither config nor tokenizer knows a limit
CALIBRATION_SAMPLES, CALIBRATION_TOKENS = 32, 512  # for static scales of rounded attention


@dataclass(frozen=True, kw_only=True)
class Run:
    """One of the models that are asked, and how it computes."""

    model: str | Path
    dtype: torch.dtype = torch.float32
    attention: AttentionFormats | None = None
    # Who scores several questions at a time, each by itself: time, never the result.
    mapper: Mapper = field(default_factory=Serial, compare=False)


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """Where results go. Nothing is kept unless a file is named."""

    records: Path | None = None  # a store; tasks found in it are not asked again
    samples: Path | None = None  # JSON lines: every question and answer. All are asked anew


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Loaded in `dtype`, with attention rounded as asked."""

    model: PreTrainedModel
    tokenizer: Tokenizer
    limit: int  # tokens
    stops: tuple[int, ...]  # any of them ends an answer

    @classmethod
    def load(cls, run: Run) -> Engine:
        """Raises what load_model, load_tokenizer and round_attention raise."""
        path, attention = run.model, run.attention
        tokenizer = load_tokenizer(path)
        model = load_model(path, run.dtype)
        limit = token_limit(model.config, tokenizer)
        if attention is not None:
            samples = None
            if attention.static:
                samples = calibration_samples(
                    attention.calibrate, tokenizer, samples=CALIBRATION_SAMPLES,
                    tokens=min(limit, CALIBRATION_TOKENS), seed=0,
                ).ids  # fmt: skip
            round_attention(model, attention, samples)
        return cls(model=model, tokenizer=tokenizer, limit=limit, stops=stop_tokens(path))


def token_limit(config: Any, tokenizer: Tokenizer) -> int:
    """Tokens a model takes: what its config says, else its tokenizer, else UNLIMITED."""
    found = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    return int(found) if found < 1 << 24 else UNLIMITED  # a tokenizer's 'no limit' is 1e30


def stop_tokens(path: str | Path) -> tuple[int, ...]:
    """The end-of-text ids of generation_config.json, config.json and the tokenizer."""
    directory = resolve_model(path)
    found: list[Any] = [load_tokenizer(path).eos_token_id]
    for name in ("generation_config.json", "config.json"):
        if (directory / name).is_file():
            ids = json.loads((directory / name).read_text()).get("eos_token_id")
            found += ids if isinstance(ids, list) else [ids]
    return tuple(sorted({each for each in found if isinstance(each, int)}))


def fingerprint(path: str | Path) -> str:
    """Which model it is, whatever its folder is called."""
    return Checkpoint.open(resolve_model(path)).fingerprint


def describe_chat(tokenizer: Tokenizer, asked: bool) -> str:
    """The chat template in words, for reports. Raises UnsupportedError if there is none to use."""
    template = tokenizer.chat_template
    if not asked:
        return "not applied; the tokenizer has one" if template else "none"
    if not template:
        raise UnsupportedError(
            "a chat template is asked for, but the tokenizer has none; leave --chat-template out"
        )
    content = json.dumps(template, sort_keys=True) if isinstance(template, Mapping) else template
    return f"the tokenizer's (SHA-256 {hashlib.sha256(content.encode()).hexdigest()[:12]})"
