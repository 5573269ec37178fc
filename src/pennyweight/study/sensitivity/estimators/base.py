"""What an estimator of sensitivity is, and what it works with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from pennyweight.core import Progress, Registry, UnsupportedError
from pennyweight.formats.schemes import parse_scheme
from pennyweight.model.engine import Engine, Local
from pennyweight.model.workers import Workers
from pennyweight.study.bank import Bank
from pennyweight.study.gauge import Gauge, Measured, Opening
from pennyweight.study.trial import Trials
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

    def measure(self, mixes: Sequence[Mapping[str, str]]) -> Iterator[Measured]:
        """What each mix lost, in order, whoever measured it; its forward pass is counted."""
        for found in self.engine.map(Gauge(self.trials, self.opening), mixes):
            self.spent.forward += self.trials.texts.scored
            yield found


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What one unit loses under one scheme."""

    unit: Unit
    scheme: str
    value: float
    lower: float | None = None  # ends of the 95 % interval, where the estimator knows one
    upper: float | None = None
    made: Mapping[str, Any] = field(default_factory=dict)  # provenance, if not of this process


Wanted = Sequence[tuple[Unit, str]]


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
    factors = {}
    for scheme in dict.fromkeys(one.scheme for one in given):
        mine = [one for one in given if one.scheme == scheme]
        total = sum(one.value for one in mine)
        mix = {tensor: scheme for one in mine for tensor in one.unit.tensors}
        kl = bench.trials.measure(mix).kl.value
        bench.spent.forward += bench.trials.texts.scored
        factors[scheme] = kl / total if total > 0 else 1.0
    for one in given:
        yield replace(one, value=one.value * factors[one.scheme])


ESTIMATORS: Registry[type[Estimator]] = Registry("estimator")
estimator = ESTIMATORS.register
