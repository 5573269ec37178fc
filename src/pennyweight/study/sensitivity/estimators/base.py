"""What an estimator of sensitivity is, and what it works with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from pennyweight.core import Progress, Registry, UnsupportedError
from pennyweight.evaluate import Interval
from pennyweight.formats.schemes import parse_scheme
from pennyweight.model.engine import Engine, Local
from pennyweight.model.workers import Workers
from pennyweight.study.bank import Bank
from pennyweight.study.gauge import Found, Gauge, Item, Measured, Opening
from pennyweight.study.trial import Trial, Trials
from pennyweight.study.units import Unit


@dataclass
class Spent:
    """Tokens that passed through the whole model so far: what an estimate costs."""

    forward: float = 0.0
    backward: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What there is to estimate from."""

    bank: Bank
    trials: Trials  # on the text that the table is for
    folder: Path  # for files of an estimator's own, which an interrupted run continues from
    workers: Workers
    seed: int = 0
    progress: Progress = field(default_factory=Progress)
    spent: Spent = field(default_factory=Spent)
    engine: Engine = field(default_factory=Local)
    opening: Opening | None = None  # of the same trials by another process of the engine

    def measure(self, mixes: Sequence[Mapping[str, str]]) -> Iterator[Measured[Trial]]:
        """What each mix lost, in order, whoever measured it; its forward pass is counted."""
        for measured in self.engine.map(self._gauge, mixes):
            self.spent.forward += self.trials.texts.scored
            yield measured

    @cached_property
    def _gauge(self) -> Gauge[Mapping[str, str], Trial]:
        """One object: an engine's processes stay as long as it is the same."""
        return Gauge(Trials.measure, self.trials, self.opening)

    def each(
        self, measure: Callable[[Trials, Item], Found], items: Sequence[Item]
    ) -> Iterator[Measured[Found]]:
        """What a function, which can be sent, finds for each item, in order."""
        return self.engine.map(Gauge(measure, self.trials, self.opening), items)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What one unit loses under one scheme."""

    unit: Unit
    scheme: str
    value: float
    lower: float | None = None  # ends of the 95 % interval, where the estimator knows one
    upper: float | None = None
    made: Mapping[str, Any] = field(default_factory=dict)  # provenance, if not of this process

    @classmethod
    def of(cls, unit: Unit, scheme: str, loss: Interval, made: Mapping[str, Any]) -> Estimate:
        """With the ends of an interval, which are nan where there was nothing to resample."""
        known = loss.low == loss.low
        return cls(
            unit=unit, scheme=scheme, value=loss.value, lower=loss.low if known else None,
            upper=loss.high if known else None, made=made,
        )  # fmt: skip


Wanted = Sequence[tuple[Unit, str]]


def by_unit(wanted: Wanted) -> list[tuple[Unit, list[str]]]:
    """Each unit with its schemes, which come one after another."""
    grouped = groupby(wanted, key=lambda each: each[0])
    return [(unit, [scheme for _, scheme in mine]) for unit, mine in grouped]


@runtime_checkable
class Estimator(Protocol):
    """Each is a frozen dataclass; its fields are its options."""

    source: ClassVar[str]  # where it is described
    cost: ClassVar[str]  # in passes over the text, in words
    together: ClassVar[bool]  # an estimate depends on what the others are: all are made, or none

    def __call__(self, bench: Bench, wanted: Wanted) -> Iterator[Estimate]:
        """One estimate for each of `wanted`, in that order, as soon as it is known.

        Raises UnsupportedError for a scheme or quantizer that it can say nothing about.
        """
        ...


@runtime_checkable
class Contextual(Estimator, Protocol):
    """An estimator whose estimates depend on more than the unit, its scheme and the options."""

    def context(self, bench: Bench) -> str:
        """What the rest is, as a digest: part of what a record is found by."""
        ...


def require_weight_only(bench: Bench, wanted: Wanted, name: str) -> None:
    """Raises UnsupportedError naming the first unit that is no linear of a block, or scheme that
    rounds inputs as well."""
    for unit, _ in wanted:
        if not bench.bank.survey.by_tensor.keys() >= set(unit.tensors):
            raise UnsupportedError(
                f"{name} looks at weights of linears in blocks alone, and {unit.name} is none; use "
                "the estimator direct, or leave these units out"
            )
    dtype = bench.bank.survey.skeleton.dtype
    for scheme in dict.fromkeys(scheme for _, scheme in wanted):
        if parse_scheme(scheme, dtype).activation is not None:
            raise UnsupportedError(
                f"{name} looks at weights alone, and {scheme} also rounds the inputs of a linear; "
                "use the estimator direct, or leave this scheme out"
            )


def anchored(bench: Bench, estimates: Iterable[Estimate]) -> Iterator[Estimate]:
    """The same estimates in nats: those of a scheme times what makes their sum the measured KL of
    all their units in it together. One forward pass for each scheme.

    Losses of units add up (the linearity theorem), so that the sum is what can be measured at once.
    A scheme whose estimates sum to nothing stays as it is.
    """
    given = list(estimates)
    totals, mixes = dict[str, float](), dict[str, dict[str, str]]()
    for one in given:
        totals[one.scheme] = totals.get(one.scheme, 0.0) + one.value
        mixes.setdefault(one.scheme, {}).update(dict.fromkeys(one.unit.tensors, one.scheme))
    factors = {
        scheme: measured.found.kl.value / totals[scheme] if totals[scheme] > 0 else 1.0
        for scheme, measured in zip(mixes, bench.measure(list(mixes.values())), strict=True)
    }
    for one in given:
        yield replace(one, value=one.value * factors[one.scheme])


ESTIMATORS: Registry[type[Estimator]] = Registry("estimator")
estimator = ESTIMATORS.register
