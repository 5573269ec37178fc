"""The loss of a mix of two models on one text, measured once and kept as Records."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from pennyweight.core import DataError
from pennyweight.core.record import Record, record_key
from pennyweight.evaluate import Interval, score_documents
from pennyweight.evaluate.evaluation import summarize
from pennyweight.evaluate.intervals import CONFIDENCE
from pennyweight.evaluate.logits import LogitsFunction
from pennyweight.evaluate.scores import Scores
from pennyweight.model.tokens import Tokens
from pennyweight.model.workers import Workers
from pennyweight.records import Clock, Store, provenance
from pennyweight.study.texts import Texts
from pennyweight.study.trial import Reference, joined, logits_of

STUDY = "diagnose"
METRICS = ("kl_nats", "perplexity_change_percent")


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Against the reference, on the same documents."""

    kl_nats: Interval
    perplexity_change_percent: Interval


@dataclass
class Losses:
    """Measures mixes on one text, and keeps what was measured in a store if there is one."""

    texts: Texts
    workers: Workers
    reference: Reference
    subject: Mapping[str, Any]  # of every record: models, text, settings
    store: Store | None = None
    measured: int = 0  # not found in the store
    known: dict[tuple[str, str], Record] = field(default_factory=dict)

    @classmethod
    def open(
        cls, texts: Texts, workers: Workers, model: PreTrainedModel, folder: Path,
        subject: Mapping[str, Any], store: Store | None,
    ) -> Losses:  # fmt: skip
        """model: the reference; folder: where a file without a name can be."""
        known = {} if store is None else {(r.key, r.metric): r for r in store.find(study=STUDY)}
        return cls(texts, workers, Reference(model, folder), subject, store, 0, known)

    def __call__(self, model: PreTrainedModel, what: Mapping[str, Any]) -> Loss:
        """what: what the model is a mix of, which with `subject` says all there is to know.

        Raises DataError if the text is one window, which has no interval.
        """
        subject = {**self.subject, **what}
        key = record_key(subject)
        if all((key, metric) in self.known for metric in METRICS):
            return Loss(**{metric: _interval(self.known[key, metric]) for metric in METRICS})
        clock, loss = Clock(), self._measure(model)
        self.measured += 1
        self._keep(
            [self._record(key, subject, name, getattr(loss, name), clock) for name in METRICS]
        )
        return loss

    def _measure(self, model: PreTrainedModel) -> Loss:
        score = functools.partial(self._score, logits_of(model))
        scores = joined(self.workers.map(score, self.texts.tokens))
        found = summarize(scores, self.texts.settings).comparison
        assert found is not None, "there is a reference"
        if math.isnan(found.kl_nats.high):
            raise DataError(
                f"{', '.join(self.texts.data)}: {self.texts.scored} tokens are one window, which "
                "has no interval; expected more text, or a shorter --context"
            )
        return Loss(
            kl_nats=found.kl_nats, perplexity_change_percent=found.perplexity_change_percent
        )

    def _score(self, logits: LogitsFunction, document: Tokens) -> Scores:
        settings = self.texts.settings
        assert settings.context is not None, "texts have complete settings"
        return score_documents(
            logits, [document], context=settings.context, stride=settings.stride,
            reference=self.reference,
        )  # fmt: skip

    def _record(
        self, key: str, subject: dict[str, Any], metric: str, loss: Interval, clock: Clock
    ) -> Record:
        return Record(
            study=STUDY, key=key, subject=subject, metric=metric, value=loss.value, lower=loss.low,
            upper=loss.high, confidence=CONFIDENCE, data=self.texts.digest,
            seed=self.texts.settings.seed, **provenance(clock),
        )  # fmt: skip

    def note(self, what: Mapping[str, Any], values: Mapping[str, float]) -> None:
        """Keep numbers that have no interval, such as errors."""
        subject = {**self.subject, **what}
        key, made = record_key(subject), provenance()
        self._keep([
            Record(study=STUDY, key=key, subject=subject, metric=metric, value=value,
                   data=self.texts.digest, **made)
            for metric, value in values.items()
        ])  # fmt: skip

    def _keep(self, records: list[Record]) -> None:
        if self.store is not None:
            self.store.add(records)
        self.known |= {(record.key, record.metric): record for record in records}


def _interval(record: Record) -> Interval:
    assert record.lower is not None and record.upper is not None, "`_measure` refuses nan"
    return Interval(low=record.lower, value=record.value, high=record.upper)
