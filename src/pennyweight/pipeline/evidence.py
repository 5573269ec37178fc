"""An evaluation over texts as Records, and found again in them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from pennyweight.core.record import Record, record_key
from pennyweight.evaluate import Evaluation, Interval
from pennyweight.pipeline.engine import fingerprint
from pennyweight.pipeline.evaluate import Measurement
from pennyweight.records import Clock, Store, provenance

STUDY = "eval"
WHOLE = "whole"  # in a record's detail
T = TypeVar("T")


def measured(measurement: Measurement, records: Path, clock: Clock) -> tuple[Evaluation, bool]:
    """What a store holds of this measurement, or the measurement itself, which is then kept; and
    whether it was there."""
    settings, names = measurement.settings, measurement.names
    against = names["reference"]
    identity: dict[str, Any] = json.loads(json.dumps(asdict(settings))) | {
        "fingerprint": fingerprint(names["model"]),
        "reference": fingerprint(against) if against else None,
        "tokens": measurement.digest,
        "attention": json.loads(json.dumps(asdict(names["attention"]))),
    }
    store = Store.open(records)
    kept = kept_whole(store, STUDY, identity, Evaluation)
    if kept is not None:  # the folders may be others now
        return replace(kept, **names), True
    evaluation = measurement()
    store.add(_evaluation_records(evaluation, identity, clock))
    return evaluation, False


def kept_whole(store: Store, study: str, identity: Mapping[str, Any], kind: type[T]) -> T | None:
    """A result that one of its records holds in full, under WHOLE in its detail."""
    key = record_key(identity)
    for record in store.find(study=study):
        if record.key == key and WHOLE in record.detail:
            return TypeAdapter(kind).validate_python(_with_nan(record.detail[WHOLE]))
    return None


def _with_nan(value: Any) -> Any:
    """Ends of intervals that JSON has as null."""
    if isinstance(value, list):
        return [_with_nan(each) for each in value]
    if not isinstance(value, dict):
        return value
    ends = value.keys() == {"low", "value", "high"}
    return {k: math.nan if ends and v is None else _with_nan(v) for k, v in value.items()}


def _evaluation_records(
    evaluation: Evaluation, identity: Mapping[str, Any], clock: Clock
) -> Iterator[Record]:
    """One for each number; that of the perplexity holds them all."""
    found = {"perplexity": evaluation.perplexity, "bits_per_byte": evaluation.bits_per_byte}
    if comparison := evaluation.comparison:
        found |= {
            "perplexity_change_percent": comparison.perplexity_change_percent,
            "kl_nats": comparison.kl_nats,
            "top1_agreement_percent": comparison.top1_agreement_percent,
            "reference_perplexity": comparison.perplexity,
            "reference_bits_per_byte": comparison.bits_per_byte,
        }
    subject = dict(identity) | {
        "model": evaluation.model, "against": evaluation.reference, "data": list(evaluation.data),
        "unit": evaluation.unit, "scored_tokens": evaluation.tokens,
    }  # fmt: skip
    for name, interval in found.items():
        if isinstance(interval, Interval) and interval.value - interval.value == 0:
            yield Record(
                study=STUDY,
                key=record_key(identity),
                subject=subject,
                metric=name,
                value=interval.value,
                lower=known(interval.low),
                upper=known(interval.high),
                confidence=evaluation.confidence,
                data=evaluation.digest,
                seed=evaluation.settings.seed,
                detail={WHOLE: evaluation.to_dict()} if name == "perplexity" else {},
                **provenance(clock),
            )


def known(end: float) -> float | None:
    """None for an interval that could not be computed."""
    return end if end - end == 0 else None
