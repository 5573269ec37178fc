"""The verb `sense`: a table of what each unit of a model loses under each scheme, and how well the
cheap estimators do against measuring it."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from pennyweight.core import CheckpointError, Progress, UnsupportedError
from pennyweight.core.record import Record
from pennyweight.evaluate import Interval
from pennyweight.model.engine import Engine
from pennyweight.model.writer import disk_errors
from pennyweight.study.sensitivity.estimators import ESTIMATORS
from pennyweight.study.sensitivity.sensing import Places, Request, Sensing
from pennyweight.study.sensitivity.table import Sensitivity

MEASURED = "direct"  # the estimator that the others are compared with
MARK = "sense.work"  # an empty file: a folder that has it was made here


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """How an estimator does against measuring, over all units and schemes of a table."""

    estimator: str
    refused: str = ""  # why there is nothing else to say of it
    spearman: float | None = None  # over all units and schemes; None if all values are equal
    spearman_by_scheme: dict[str, float | None] | None = None  # over the units under one scheme
    scale: float | None = None  # measured / estimated, geometric mean
    spread: float | None = None  # geometric standard deviation of that: 1 is perfect
    compared: int = 0  # pairs with both above 0, of which scale and spread are
    forward_passes: float = 0.0  # over the text of the table
    backward_passes: float = 0.0
    wall_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Additivity:
    """Whether losses of units add up: all units in one scheme, one by one and at once."""

    scheme: str
    sum: float  # of the units' KL, nats
    together: Interval  # KL of all of them at once, nats


@dataclass(frozen=True, kw_only=True)
class Comparison:
    rankings: tuple[Ranking, ...]
    additivity: tuple[Additivity, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def sense(
    request: Request,
    places: Places,
    *,
    compared: bool = False,
    engine: Engine | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> tuple[Sensitivity, Comparison | None]:
    """Write the table of a request to a file; with `compared` say also how the estimators do.

    Work goes into the folder `<output>.work`; interrupted, the same call continues there. `threads`
    and the engine, which measures the units one by one, change the time and nothing else. Raises a
    PennyweightError for anything a user can cause; `output` is then what it was.
    """
    work = _work(places.output)
    with Sensing.open(
        request, work, places=places, engine=engine, threads=threads, progress=progress
    ) as sensing:
        table = sensing.table(sensing.estimate(request.estimator, request.options))
        comparison = compare(sensing) if compared else None
    table.dump(places.output)
    if not places.keep_work:
        with disk_errors(work):
            shutil.rmtree(work)
    return table, comparison


def compare(sensing: Sensing) -> Comparison:
    """Measure every unit, and set each estimator against that. What was measured is used again."""
    measured = sensing.estimate(MEASURED, {})
    rankings = tuple(_ranking(sensing, name, measured) for name in ESTIMATORS)
    additivity = []
    for scheme in sensing.schemes:
        total = sum(r.value for r in measured if r.subject["scheme"] == scheme)
        once = sensing.together(scheme)
        low, high = (math.nan if end is None else end for end in (once.lower, once.upper))
        together = Interval(low=low, value=once.value, high=high)
        additivity.append(Additivity(scheme=scheme, sum=total, together=together))
    return Comparison(rankings=rankings, additivity=tuple(additivity))


def _ranking(sensing: Sensing, name: str, measured: Sequence[Record]) -> Ranking:
    request = sensing.request
    options = request.options if name == request.estimator else {}
    try:
        found = sensing.estimate(name, options)
    except UnsupportedError as error:
        return Ranking(estimator=name, refused=str(error))
    pairs = [(m.value, f.value) for m, f in zip(measured, found, strict=True)]
    schemes = [record.subject["scheme"] for record in measured]
    of = lambda scheme: [p for p, s in zip(pairs, schemes, strict=True) if s == scheme]
    scale, spread, compared = ratio(pairs)
    tokens = sensing.bench.trials.texts.scored
    return Ranking(
        estimator=name, spearman=spearman(pairs),
        spearman_by_scheme={scheme: spearman(of(scheme)) for scheme in dict.fromkeys(schemes)},
        scale=scale, spread=spread, compared=compared,
        forward_passes=sum(r.detail["forward_tokens"] for r in found) / tokens,
        backward_passes=sum(r.detail["backward_tokens"] for r in found) / tokens,
        wall_s=sum(r.wall_time_s or 0.0 for r in found),
    )  # fmt: skip


def spearman(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Rank correlation; None where one side has a single value and so no ranks."""
    first, second = ([pair[side] for pair in pairs] for side in (0, 1))
    if len(set(first)) < 2 or len(set(second)) < 2:
        return None
    return float(spearmanr(first, second).statistic)


def ratio(pairs: Sequence[tuple[float, float]]) -> tuple[float | None, float | None, int]:
    """(geometric mean, geometric standard deviation, number) of first / second, where both are
    above 0."""
    logs = [math.log(a / b) for a, b in pairs if a > 0 and b > 0]
    if not logs:
        return None, None, 0
    mean = sum(logs) / len(logs)
    variance = sum((each - mean) ** 2 for each in logs) / len(logs)
    return math.exp(mean), math.exp(math.sqrt(variance)), len(logs)


def _work(output: Path) -> Path:
    """The work folder of `output`. Raises CheckpointError if there is something else."""
    if not output.parent.is_dir():
        raise CheckpointError(f"{output}: there is no folder {output.parent} to write it to")
    if output.is_dir():
        raise CheckpointError(
            f"{output}: is a folder; name a file, such as {output / 'sense.json'}"
        )
    work = output.with_name(f"{output.name}.work")
    with disk_errors(work):
        work.mkdir(exist_ok=True)
        if not (work / MARK).exists() and any(work.iterdir()):
            raise CheckpointError(
                f"{work}: is needed as the work folder, but holds something else; move it away, or "
                "choose another output file"
            )
        (work / MARK).touch()
    return work
