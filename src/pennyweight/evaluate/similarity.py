"""How alike two texts are that a model and its reference wrote to the same prompts, greedily.

"Give Me BF16 or Give Me Death?" (arXiv:2411.02355, section 4.2) compares ROUGE-1, ROUGE-L,
BERTScore and STS. Words are what ROUGE's own tokenizer makes of ASCII (lower case, letters and
digits), and the same of other scripts, which that tokenizer drops. The first divergence is in
tokens, because that is where the models part: what comes after answers another text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import regex
import torch
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer as RougeTokenizer

from pennyweight.core.errors import DataError
from pennyweight.evaluate.intervals import (
    CONFIDENCE,
    RESAMPLES,
    Interval,
    bootstrap_ratios,
    wilson_percent,
)

WORD = regex.compile(r"[^\W_]+")
LOOP_REPEATS = 3  # of a unit at the end of a text ...
LOOP_TOKENS = 16  # ... over at least so many tokens: a list or a rhyme repeats less

Encoder = Callable[[Sequence[str], Sequence[str]], dict[str, list[float]]]
"""Texts of the model, texts of the reference -> measure -> a value for each pair."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model wrote: its new tokens without the one that ended it, and their text."""

    ids: tuple[int, ...]
    text: str


@dataclass(frozen=True, kw_only=True)
class Degeneration:
    """How many answers of one model are no answers, in percent."""

    looping_percent: Interval  # end in a phrase repeated three times or more, over 16 tokens
    empty_percent: Interval  # no text but white space
    mean_tokens: Interval


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """Means over prompts; shares and scores in percent, lengths in tokens."""

    prompts: int
    rouge1_percent: Interval  # F-measure
    rougeL_percent: Interval
    equal_percent: Interval  # answers that are the same, token by token
    prefix_tokens: Interval  # equal from the beginning
    prefix_percent: Interval  # of the reference's answer
    encoded: dict[str, Interval]  # measures of an encoder, if there is one
    length_drift_percent: Interval  # mean length against the reference's, paired
    model: Degeneration
    reference: Degeneration
    first_divergence: tuple[int | None, ...]  # for each prompt; None: equal
    confidence: float
    resamples: int
    seed: int


def similarity(
    model: Sequence[Answer],
    reference: Sequence[Answer],
    *,
    encoder: Encoder | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Similarity:
    """Compare answers to the same prompts, in the same order."""
    if len(model) != len(reference) or not model:
        raise DataError(f"{len(model)} answers against {len(reference)}; expected as many, and one")
    pairs = list(zip(model, reference, strict=True))
    divergence = tuple(first_divergence(m.ids, r.ids) for m, r in pairs)
    prefix = [len(r.ids) if d is None else d for d, (_, r) in zip(divergence, pairs, strict=True)]
    rouge = [rouge_percent(m.text, r.text) for m, r in pairs]
    lengths, referred = ([float(len(a.ids)) for a in each] for each in (model, reference))
    ones = [1.0] * len(pairs)
    columns = {
        "rouge1": ([one for one, _ in rouge], ones),
        "rougeL": ([longest for _, longest in rouge], ones),
        "prefix": ([float(each) for each in prefix], ones),
        "share": ([100.0 * each for each in prefix], referred),
        "drift": ([100 * (a - b) for a, b in zip(lengths, referred, strict=True)], referred),
        "model": (lengths, ones),
        "reference": (referred, ones),
    }
    encoded = encoder([m.text for m, _ in pairs], [r.text for _, r in pairs]) if encoder else {}
    columns |= {f"encoded {name}": (values, ones) for name, values in encoded.items()}
    found = _intervals(columns, seed, resamples)
    return Similarity(
        prompts=len(pairs),
        rouge1_percent=found["rouge1"],
        rougeL_percent=found["rougeL"],
        equal_percent=_share([d is None for d in divergence]),
        prefix_tokens=found["prefix"],
        prefix_percent=found["share"],
        encoded={name: found[f"encoded {name}"] for name in encoded},
        length_drift_percent=found["drift"],
        model=_degeneration(model, found["model"]),
        reference=_degeneration(reference, found["reference"]),
        first_divergence=divergence,
        confidence=CONFIDENCE,
        resamples=resamples,
        seed=seed,
    )


def first_divergence(ids: Sequence[int], other: Sequence[int]) -> int | None:
    """The first place, from 0, where one has another token or has ended; None if they are equal."""
    for place, (a, b) in enumerate(zip(ids, other, strict=False)):
        if a != b:
            return place
    return None if len(ids) == len(other) else min(len(ids), len(other))


def loop_length(ids: Sequence[int]) -> int:
    """Tokens at the end that are one phrase over and over; 0 unless it is there three times and
    over LOOP_TOKENS tokens. The phrase may break off in its middle."""
    longest = 0
    for period in range(1, len(ids) // LOOP_REPEATS + 1):
        length = period
        while length < len(ids) and ids[-1 - length] == ids[-1 - length + period]:
            length += 1
        if length >= LOOP_REPEATS * period and length >= LOOP_TOKENS:
            longest = max(longest, length)
    return longest


def rouge_percent(text: str, reference: str) -> tuple[float, float]:
    """F-measures of ROUGE-1 and ROUGE-L. Two texts without a word are alike."""
    if not WORD.search(text) and not WORD.search(reference):
        return 100.0, 100.0
    found = SCORER.score(reference, text)
    return 100 * float(found["rouge1"].fmeasure), 100 * float(found["rougeL"].fmeasure)


def _share(which: Sequence[bool]) -> Interval:
    return wilson_percent(sum(which), len(which))


class _Words(RougeTokenizer):
    def tokenize(self, text: str) -> list[str]:
        return WORD.findall(text.lower())


SCORER = RougeScorer(["rouge1", "rougeL"], tokenizer=_Words())


def _degeneration(answers: Sequence[Answer], mean_tokens: Interval) -> Degeneration:
    return Degeneration(
        looping_percent=_share([loop_length(answer.ids) > 0 for answer in answers]),
        empty_percent=_share([not answer.text.strip() for answer in answers]),
        mean_tokens=mean_tokens,
    )


def _intervals(
    columns: dict[str, tuple[list[float], list[float]]], seed: int, resamples: int
) -> dict[str, Interval]:
    above, below = (
        torch.tensor([column[side] for column in columns.values()], dtype=torch.float64)
        for side in (0, 1)
    )
    found = bootstrap_ratios(above, below, seed=seed, resamples=resamples)
    return dict(zip(columns, found, strict=True))
