"""The files that other verbs wrote, as far as a report shows them. Other keys are let be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pennyweight.evaluate import Interval


@dataclass(frozen=True, kw_only=True)
class LinearFact:
    """One quantized linear, in proof.json."""

    bytes: int
    loss: float | None = None
    metric: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Size:
    bytes_before: int
    bytes_after: int
    bits_per_weight: float


@dataclass(frozen=True, kw_only=True)
class Proven:
    size: Size
    census: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, Any] = field(default_factory=dict)
    logits: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ProofFile:
    """proof.json of a quantized directory."""

    proof: Proven
    plan: str
    linears: Mapping[str, LinearFact]
    calibration: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Ends:
    """An interval in a file; ends that could not be computed are null."""

    value: float | None
    low: float | None = None
    high: float | None = None

    @property
    def interval(self) -> Interval:
        low, value, high = (math.nan if x is None else x for x in (self.low, self.value, self.high))
        return Interval(low=low, value=value, high=high)


@dataclass(frozen=True, kw_only=True)
class EvaluationFile:
    """What `eval --json` printed."""

    perplexity: Ends
    tokens: int
    settings: Mapping[str, Any]
    bits_per_byte: Ends | None = None
    comparison: Mapping[str, Ends | None] | None = None
    digest: str = ""
    reference: str = ""
    data: tuple[str, ...] = ()
    attention: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PortraitFacts:
    """One activation on one calibration set."""

    kurtosis: float | None
    max_to_median: float | None
    absmax: float | None
    token_sqnr_db: float | None
    whole_tensor_sqnr_db: float | None


@dataclass(frozen=True, kw_only=True)
class PlaceFacts:
    name: str
    block: int
    kind: str
    portraits: Mapping[str, PortraitFacts]


@dataclass(frozen=True, kw_only=True)
class ProfileFile:
    """What `profile --json` printed."""

    model: str
    calibration: Mapping[str, Mapping[str, Any]]
    places: tuple[PlaceFacts, ...]
    advice: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class FrontierPoint:
    cost: float
    predicted: float
    bits_per_weight: float


@dataclass(frozen=True, kw_only=True)
class CandidateFigures:
    bits_per_weight: float
    size_bytes: float


@dataclass(frozen=True, kw_only=True)
class MeasuredLoss:
    loss: Ends


@dataclass(frozen=True, kw_only=True)
class CandidateFacts:
    predicted: float | None
    cost: float
    figures: CandidateFigures
    measured: MeasuredLoss
    inside: bool


@dataclass(frozen=True, kw_only=True)
class FrontierFile:
    """The candidates that `plan` built."""

    model: str
    budget: Mapping[str, Any]
    candidates: tuple[CandidateFacts, ...]
    predicted_frontier: tuple[FrontierPoint, ...]
    chosen: int
    tokens: int = 0
    noise_of_16_bits: float | None = None


@dataclass(frozen=True, kw_only=True)
class LossFacts:
    """The loss of a model with some parts exchanged."""

    kl_nats: Ends
    perplexity_change_percent: Ends


@dataclass(frozen=True, kw_only=True)
class PartFacts:
    name: str
    numbers: str
    only_quantized: LossFacts
    only_restored: LossFacts


@dataclass(frozen=True, kw_only=True)
class ErrorFacts:
    """Squared errors over the energy of the output; None where there is no such."""

    name: str
    own: float | None
    inherited: float | None
    total: float | None


@dataclass(frozen=True, kw_only=True)
class CureFacts:
    parts: tuple[str, ...] | None
    loss: Ends


@dataclass(frozen=True, kw_only=True)
class RemedyFacts:
    what: str
    why: str
    recipe: str = ""


@dataclass(frozen=True, kw_only=True)
class DiagnosisFile:
    """What `diagnose --json` printed."""

    reference: str
    quantized: str
    target: str
    whole: LossFacts
    parts: tuple[PartFacts, ...]
    cure: CureFacts
    weights_only: LossFacts | None = None
    activations_only: LossFacts | None = None
    errors: tuple[ErrorFacts, ...] = ()
    remedies: tuple[RemedyFacts, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A prompt, and what both models wrote after it."""

    prompt: str
    model: str
    reference: str
    name: str = ""
