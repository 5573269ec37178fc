"""Bits and errors of every linear, block by block."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import plotly.graph_objects as go

from pennyweight.report.content import Absent, Heading, Part, Plot, Section, Table, Text
from pennyweight.report.figure import HEAT, axis, figure
from pennyweight.report.material import Material, Model
from pennyweight.report.words import label, number

TITLE = "Bits and errors, block by block"
SAME_BITS = 0.25  # apart by less: a map would show nothing but the scales of short rows
MOST_BITS = 16.0  # the strongest colour
MOST_ROWS = 600  # of the table under a map; larger models have the numbers in proof.json
ROW_PX, TALL = 30, 24  # a row of the map; with more blocks than this rows get thinner


@dataclass(frozen=True, kw_only=True)
class Linear:
    """One weight; of experts, what all of a block take and lose together."""

    block: int
    kind: str  # its name below the block: `mlp.down_proj`, `mlp.experts.*.up_proj`
    bits: float  # per weight, everything stored counted
    error: float | None  # relative squared error; None if it is stored as it was
    metric: str
    scheme: str


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The linears of a model, by block and kind."""

    linears: Mapping[tuple[int, str], Linear]

    @cached_property
    def blocks(self) -> list[int]:
        return sorted({block for block, _ in self.linears})

    @cached_property
    def kinds(self) -> list[str]:
        return list(dict.fromkeys(kind for _, kind in self.linears))

    @cached_property
    def bits(self) -> tuple[float, float]:
        """The fewest and the most."""
        bits = [one.bits for one in self.linears.values()]
        return min(bits), max(bits)

    @cached_property
    def error_unit(self) -> tuple[str, float]:
        """What errors are shown in, so that they take few digits, and how many are 1."""
        most = max((one.error or 0.0 for one in self.linears.values()), default=0.0)
        return ("%", 1e2) if most >= 1e-3 else ("millionths", 1e6)

    def values(self, field: str) -> list[list[float | None]]:
        """A row for each block; None where a block has no such linear."""
        at = self.linears.get
        return [
            [None if (one := at((b, k))) is None else getattr(one, field) for k in self.kinds]
            for b in self.blocks
        ]


def grid(model: Model) -> Grid:
    """What proof.json says of each linear, and the ones beside them that were left as they are."""
    order = {task.tensor: index for index, task in enumerate(model.plan.tasks)}
    schemes = {task.tensor: task.scheme for task in model.plan.tasks}
    parts: dict[tuple[int, str], list[tuple[int, float, float | None, str, str]]]
    parts = defaultdict(list)
    facts, tensors = model.proof.linears, model.checkpoint.tensors
    stacks = {_stack(tensor) for tensor in facts}
    for tensor in sorted(tensors, key=lambda name: order.get(name, len(order))):
        info, place, fact = tensors[tensor], where(tensor), facts.get(tensor)
        if place is None:
            continue
        count = prod(info.shape)
        if fact is not None:
            told = (count, 8.0 * fact.bytes, fact.loss, fact.metric, schemes.get(tensor, ""))
            parts[place].append(told)
        elif _stack(tensor) in stacks and len(info.shape) == 2:
            parts[place].append((count, 8.0 * info.size_bytes, None, "", "as it was"))
    return Grid(linears={place: _joined(*place, found) for place, found in parts.items()})


def where(tensor: str) -> tuple[int, str] | None:
    """Block and kind of a weight: `model.layers.3.mlp.experts.5.up_proj.weight` is
    (3, 'mlp.experts.*.up_proj'). None for what is in no block."""
    found = re.search(r"(?:^|\.)(\d+)\.(.+)\.weight$", tensor)
    if found is None:
        return None
    return int(found[1]), re.sub(r"(?<=\.)\d+(?=\.|$)", "*", found[2])


def _stack(tensor: str) -> str:
    """What comes before the block: `model.layers`. A tower that is left alone is another."""
    return re.split(r"(?:^|\.)\d+\.", tensor, maxsplit=1)[0]


def section(material: Material) -> Section | Absent:
    parts: list[Part] = []
    for index, model in enumerate(material.models):
        if (found := grid(model)).linears:
            parts += _parts(model, found, index, len(material.models) > 1)
    if not parts:
        return Absent(title=TITLE, need="linears inside numbered blocks; these models have none")
    return Section(name="blocks", title=TITLE, parts=(_intro(material), *parts))


def _intro(material: Material) -> Text:
    metrics = {fact.metric for m in material.models for fact in m.proof.linears.values()}
    what = {
        "output": "of the outputs of the linear on the calibration data",
        "weight": "of the weights",
    }
    said = " or ".join(what[name] for name in sorted(metrics) if name in what)
    return Text(
        text=f"Error: the squared error {said or 'of each linear'}, as a share of what it is the "
        "error of. It is each linear's own and says where a model loses, not how much; the tables "
        "above say that. Colours of errors compare within one map."
    )


def _parts(model: Model, found: Grid, index: int, several: bool) -> Iterator[Part]:
    if several:
        yield Heading(text=model.name)
    low, high = found.bits
    if high - low < SAME_BITS:
        both = f"{low:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{low:.3g} to {high:.3g}"
        yield Text(text=f"All {len(found.linears)} at {both} bits a weight.")
    else:
        # One scale for every model: pale is few bits on all maps.
        shown = [[None if v is None else f"{v:.3g}" for v in row] for row in found.values("bits")]
        what = {"name": f"bits-{index}", "title": "bits a weight", "model": model.name}
        yield _map(found, what, found.values("bits"), shown, {"zmin": 0.0, "zmax": MOST_BITS})
    if any(one.error for one in found.linears.values()):
        unit, scale = found.error_unit
        errors = found.values("error")
        shown = [[None if v is None else number(scale * v, 2) for v in row] for row in errors]
        what = {"name": f"error-{index}", "title": f"error, {unit}", "model": model.name}
        # Errors span decades.
        yield _map(found, what, [[_log(v) for v in row] for row in errors], shown, {})


def _map(
    found: Grid,
    what: Mapping[str, str],
    values: Sequence[Sequence[float | None]],
    shown: Sequence[Sequence[str | None]],
    limits: Mapping[str, float],
) -> Plot:
    """values: what the colours say. shown: what the cells say."""
    title, rows = what["title"], len(found.blocks)
    trace = go.Heatmap(
        z=values, x=_short(found.kinds), y=list(map(str, found.blocks)), text=shown,
        texttemplate="%{text}", textfont={"color": "var(--ink)"}, colorscale=HEAT,
        showscale=False, xgap=2, ygap=2, hoverongaps=False, **limits,
        hovertemplate=f"block %{{y}}, %{{x}}: %{{text}} ({title})<extra></extra>",
    )  # fmt: skip
    return Plot(
        name=what["name"],
        title=f"{what['model']}: {title}",
        label=f"Heat map of {title} of {what['model']}: {rows} blocks down, "
        f"{len(found.kinds)} kinds of linears across. A stronger colour is more.",
        figure=figure(
            [trace],
            x=axis("", side="top", showgrid=False, type="category", tickangle=-40),
            y=axis("block", autorange="reversed", showgrid=False, type="category"),
        ),
        table=_table(found, title, what["model"]),
        height=84 + rows * (ROW_PX if rows <= TALL else max(14, ROW_PX * TALL // rows)),
    )


def _table(found: Grid, title: str, model: str) -> Table:
    unit, scale = found.error_unit
    kinds = {kind: index for index, kind in enumerate(found.kinds)}
    ordered = sorted(found.linears.values(), key=lambda one: (one.block, kinds[one.kind]))
    rows = tuple(
        (
            f"{one.block}", one.kind, one.scheme, f"{one.bits:.3g}",
            "none" if one.error is None else number(scale * one.error, 2),
        )
        for one in ordered[:MOST_ROWS]
    )  # fmt: skip
    left = len(ordered) - len(rows)
    more = f"; {left} more are in proof.json" if left else ""
    return Table(
        caption=f"{model}, {title}{more}",
        head=("block", "linear", "scheme", "bits a weight", f"error, {unit}"),
        rows=rows,
        words=frozenset({1, 2}),
    )


def _joined(block: int, kind: str, parts: Sequence[tuple[Any, ...]]) -> Linear:
    """Bits and errors of experts weigh as many as their weights."""
    total = sum(count for count, *_ in parts)
    known = [(count, error) for count, _, error, _, _ in parts if error is not None]
    counted = sum(count for count, _ in known)
    return Linear(
        block=block, kind=kind, bits=sum(bits for _, bits, *_ in parts) / total,
        error=sum(c * e for c, e in known) / counted if counted else None,
        metric=", ".join(sorted({m for *_, m, _ in parts if m})),
        scheme=", ".join(sorted({s for *_, s in parts if s})),
    )  # fmt: skip


def _log(value: float | None) -> float | None:
    """Errors span decades. An error of zero has no place on the scale, nor has a missing one."""
    return math.log10(value) if value else None


def _short(kinds: Sequence[str]) -> list[str]:
    """The last word of each kind where that tells them apart."""
    last = [kind.rpartition(".")[2] for kind in kinds]
    names = last if len(set(last)) == len(last) else list(kinds)
    return [label(name) for name in names]
