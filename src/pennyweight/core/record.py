"""A measured result, with its interval and everything needed to know where it comes from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Record:
    """One number that was measured. Records are evidence: they are added and never changed."""

    study: str  # the series it belongs to: a study's name, or the verb that made it
    key: str  # what was measured, in one digest: equal keys of a study are the same measurement
    subject: Mapping[str, Any]  # the same in words: model, scheme, unit, text, ... (JSON values)
    metric: str  # its name with the unit: `kl_nats`, `perplexity`, `accuracy_percent`
    value: float
    lower: float | None = None  # ends of the confidence interval, if there is one
    upper: float | None = None
    confidence: float | None = None  # 0.95
    plan: str = ""  # digest of the plan that made the model
    data: str = ""  # digest of the data it was measured on
    seed: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)  # package -> version, `commit`
    machine: str = ""
    wall_time_s: float | None = None
    peak_bytes: int | None = None
    made_at: str = ""  # UTC, ISO 8601
    detail: Mapping[str, Any] = field(default_factory=dict)  # whatever else a report shows


def record_key(subject: Mapping[str, Any]) -> str:
    """The key of what `subject` describes: it does not depend on the order of its entries."""
    text = json.dumps(subject, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
