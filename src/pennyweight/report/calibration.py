"""How much a result depends on the calibration set and on the seed: a study's cells."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

import plotly.graph_objects as go

from pennyweight.core.record import Record
from pennyweight.report.content import Absent, Part, Plot, Section, Table, Text
from pennyweight.report.figure import axis, figure, marker
from pennyweight.report.material import Material
from pennyweight.report.words import UNKNOWN, label, number, plural, short

TITLE = "Calibration: sets and seeds"
METRIC = "kl_nats"
AXES = ("method", "set", "samples", "seed")  # of a study's subject


def section(material: Material) -> Section | Absent:
    studies: dict[tuple[str, str], list[Record]] = {}
    for record in material.records:
        if record.metric == METRIC and all(axis in record.subject for axis in AXES):
            model = str(record.subject.get("model", ""))
            studies.setdefault((record.study, model), []).append(record)
    if not studies:
        return Absent(
            title=TITLE, need="`pennyweight study calibration STUDY.toml`, its store as --records"
        )
    parts = [part for index, (name, found) in enumerate(studies.items())
             for part in _study(name, found, index)]  # fmt: skip
    return Section(name="calibration", title=TITLE, parts=tuple(parts))


def _study(name: tuple[str, str], records: Sequence[Record], index: int) -> Iterator[Part]:
    sets = list(dict.fromkeys(str(r.subject["set"]) for r in records))
    seeds = len({r.subject["seed"] for r in records})
    yield Text(
        text=f"Study {name[0]} of {short(name[1])}: {plural(len(records), 'model')} calibrated on "
        f"{plural(len(sets), 'set')} with {plural(seeds, 'seed')}. Points are single models. "
        "Where the points of two sets lie apart by more than the points of one, the set matters."
    )
    methods = dict.fromkeys(str(r.subject["method"]) for r in records)
    for number_, method in enumerate(methods):
        mine = [r for r in records if r.subject["method"] == method]
        yield _plot(method, mine, f"calibration-{index}-{number_}")


def _plot(method: str, records: Sequence[Record], name: str) -> Plot:
    sets = list(dict.fromkeys(str(r.subject["set"]) for r in records))
    counts = sorted({r.subject["samples"] for r in records})
    traces = [_points(records, count, index) for index, count in enumerate(counts)]
    means = go.Scatter(
        x=[statistics.fmean(_values(records, each)) for each in sets], y=list(map(label, sets)),
        mode="markers", name="mean", hovertemplate="%{y}: mean %{x:.3g}<extra></extra>",
        marker={
            "symbol": "line-ns", "size": 22, "line": {"width": 2.5, "color": "var(--ink)"},
        },
    )  # fmt: skip
    return Plot(
        name=name,
        title=f"{method}: KL divergence by calibration set",
        label=f"{method}: KL divergence in nats a token of models calibrated on "
        f"{', '.join(sets)}, a point for each seed, and their means. Left is better.",
        figure=figure(
            [*traces, means],
            x=axis("KL divergence, nats a token", nticks=5),
            y=axis("", autorange="reversed", type="category", dtick=1),
        ),
        table=Table(
            caption=f"{method}: KL divergence, nats a token",
            head=("set", "models", "mean", "seed sd", "lowest", "highest"),
            rows=tuple(_row(records, each) for each in sets),
        ),
        height=130 + 44 * len(sets),
    )


def _points(records: Sequence[Record], count: int, index: int) -> go.Scatter:
    mine = [r for r in records if r.subject["samples"] == count]
    return go.Scatter(
        x=[r.value for r in mine], y=[label(str(r.subject["set"])) for r in mine], mode="markers",
        name=f"{count} samples", marker=marker(index, 11, is_open=True),
        text=[f"seed {r.subject['seed']}" for r in mine],
        hovertemplate="%{y}, %{text}: %{x:.4g}<extra></extra>",
    )  # fmt: skip


def _values(records: Sequence[Record], name: str) -> list[float]:
    return [r.value for r in records if r.subject["set"] == name]


def _row(records: Sequence[Record], name: str) -> tuple[str, ...]:
    values, deviation = _values(records, name), seed_deviation(records, name)
    return (
        name, f"{len(values)}", number(statistics.fmean(values)),
        UNKNOWN if deviation is None else number(deviation, 2), number(min(values)),
        number(max(values)),
    )  # fmt: skip


def seed_deviation(records: Sequence[Record], name: str) -> float | None:
    """The standard deviation over seeds with the sample count equal: root of the mean variance.
    None where some count has a single seed."""
    groups: dict[int, list[float]] = {}
    for record in records:
        if record.subject["set"] == name:
            groups.setdefault(record.subject["samples"], []).append(record.value)
    if any(len(group) < 2 for group in groups.values()):
        return None
    return statistics.fmean(map(statistics.variance, groups.values())) ** 0.5
