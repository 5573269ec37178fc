"""An evaluation over texts as Records."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pennyweight.core.record import Record, record_key
from pennyweight.evaluate import Evaluation, Interval
from pennyweight.pipeline.engine import fingerprint
from pennyweight.records import Clock, Store, provenance

STUDY = "eval"


def keep_evaluation(evaluation: Evaluation, records: Path, clock: Clock) -> int:
    """Add what `evaluate` found to a store; returns how many records were new."""
    settings = evaluation.settings
    identity: dict[str, Any] = json.loads(json.dumps(asdict(settings))) | {
        "fingerprint": fingerprint(evaluation.model),
        "reference": fingerprint(evaluation.reference) if evaluation.reference else None,
        "tokens": evaluation.digest,
        "attention": json.loads(json.dumps(asdict(evaluation.attention))),
    }
    found = {"perplexity": evaluation.perplexity, "bits_per_byte": evaluation.bits_per_byte}
    if comparison := evaluation.comparison:
        found |= {
            "perplexity_change_percent": comparison.perplexity_change_percent,
            "kl_nats": comparison.kl_nats,
            "top1_agreement_percent": comparison.top1_agreement_percent,
            "reference_perplexity": comparison.perplexity,
            "reference_bits_per_byte": comparison.bits_per_byte,
        }
    subject = identity | {
        "model": evaluation.model, "against": evaluation.reference, "data": list(evaluation.data),
        "unit": evaluation.unit, "scored_tokens": evaluation.tokens,
    }  # fmt: skip
    return Store.open(records).add(
        Record(
            study=STUDY,
            key=record_key(identity),
            subject=subject,
            metric=name,
            value=interval.value,
            lower=known(interval.low),
            upper=known(interval.high),
            confidence=evaluation.confidence,
            data=evaluation.digest,
            seed=settings.seed,
            **provenance(clock),
        )
        for name, interval in found.items()
        if isinstance(interval, Interval) and interval.value - interval.value == 0
    )


def known(end: float) -> float | None:
    """None for an interval that could not be computed."""
    return end if end - end == 0 else None
