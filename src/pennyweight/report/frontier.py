"""The candidates of a plan: what they were predicted to lose, and what they lost."""

from __future__ import annotations

import shlex
from typing import Any

import plotly.graph_objects as go

from pennyweight.export.card import readable_bytes
from pennyweight.report.content import Absent, Plot, Section, Table, Text
from pennyweight.report.figure import axis, figure, marker
from pennyweight.report.files import CandidateFacts, FrontierFile
from pennyweight.report.material import Material
from pennyweight.report.words import number, shown

TITLE = "The plan and what it was chosen from"


def section(material: Material) -> Section | Absent:
    found = material.frontier
    if found is None:
        return Absent(
            title=TITLE,
            need=f"`pennyweight plan {shlex.quote(material.models[0].plan.model)} "
            "--budget 'kl<=0.02' -o plan.toml`, given with --plan",
        )
    if not found.candidates or not 0 <= found.chosen < len(found.candidates):
        return Absent(title=TITLE, need="a plan with candidates; this one lists none")
    chosen = found.candidates[found.chosen]
    loss = chosen.measured.loss.interval
    said = (
        f"For {found.model} under {found.budget.get('text', 'a budget')}: "
        f"{number(chosen.figures.bits_per_weight, 4)} bits a weight, "
        f"{readable_bytes(chosen.figures.size_bytes)}; measured {shown(loss, '.3g')} "
        f"{unit(found)} on {found.tokens:,} tokens that the search had not seen, predicted "
        f"{number(chosen.predicted)}."
    )
    return Section(name="frontier", title=TITLE, parts=(Text(text=said), _plot(found)))


def unit(found: FrontierFile) -> str:
    if unit := found.budget.get("unit"):  # earlier plans do not have it
        return str(unit)
    measured = str(found.budget.get("measured", ""))
    return "% of perplexity" if measured.endswith("percent") else "nats a token"


def _plot(found: FrontierFile) -> Plot:
    candidates = found.candidates
    bits = [one.figures.bits_per_weight for one in candidates]
    points = sorted(found.predicted_frontier, key=lambda p: p.bits_per_weight)
    chosen = candidates[found.chosen]
    traces = [
        go.Scatter(
            x=[p.bits_per_weight for p in points], y=[p.predicted for p in points], mode="lines",
            name="predicted frontier", line={"color": "var(--rule)", "width": 2, "dash": "dot"},
            hovertemplate="%{x:.3g} bits: %{y:.3g}<extra>predicted frontier</extra>",
        ),
        go.Scatter(
            x=bits, y=[one.predicted for one in candidates], mode="markers",
            name="predicted", marker=marker(1, 10, is_open=True),
            hovertemplate="%{x:.4g} bits: %{y:.3g}<extra>predicted</extra>",
        ),
        go.Scatter(
            x=bits, y=[one.measured.loss.value for one in candidates], mode="markers",
            name="measured, 95 % interval", marker=marker(0, 10), error_y=_ends(candidates),
            hovertemplate="%{x:.4g} bits: %{y:.3g}<extra>measured</extra>",
        ),
        go.Scatter(
            x=[chosen.figures.bits_per_weight], y=[chosen.measured.loss.value], mode="markers",
            name="chosen", hoverinfo="skip",
            marker={"symbol": "circle-open", "size": 22, "color": "var(--ink)",
                    "line": {"width": 2, "color": "var(--ink)"}},
        ),
    ]  # fmt: skip
    return Plot(
        name="frontier",
        title="Loss against bits, predicted and measured",
        label=f"Loss in {unit(found)} against bits a weight: the predicted frontier, and "
        f"{len(candidates)} candidates as predicted and as measured. Lower left is better.",
        figure=figure(
            traces, x=axis("bits a weight"), y=axis(f"loss, {unit(found)}"), shapes=_budget(found)
        ),
        table=_table(found),
        height=420,
    )


def _ends(candidates: tuple[CandidateFacts, ...]) -> dict[str, Any]:
    ends = [one.measured.loss.interval for one in candidates]
    return {
        "type": "data", "symmetric": False, "color": "var(--muted)", "thickness": 1.5,
        "array": [e.high - e.value if e.high == e.high else 0 for e in ends],
        "arrayminus": [e.value - e.low if e.low == e.low else 0 for e in ends],
    }  # fmt: skip


def _budget(found: FrontierFile) -> list[dict[str, Any]]:
    """A line at what may be lost, or at the bits that may be spent."""
    limit, bounded = found.budget.get("limit"), found.budget.get("bounded")
    limit = found.budget.get("allowed", limit)  # of a recovery, what may be lost
    line = {"type": "line", "line": {"color": "var(--poor)", "width": 1.5, "dash": "dash"}}
    name = {"text": "budget", "textposition": "start", "font": {"color": "var(--poor)"}}
    if not isinstance(limit, int | float):
        return []
    if bounded == "loss":
        return [line | {"xref": "paper", "x0": 0, "x1": 1, "y0": limit, "y1": limit, "label": name}]
    if found.budget.get("name") == "bits":
        return [line | {"yref": "paper", "y0": 0, "y1": 1, "x0": limit, "x1": limit}]
    return []


def _table(found: FrontierFile) -> Table:
    rows = tuple(
        (
            "chosen" if index == found.chosen else f"{index + 1}",
            number(one.figures.bits_per_weight, 4), readable_bytes(one.figures.size_bytes),
            number(one.predicted), shown(one.measured.loss.interval, ".3g"),
            "yes" if one.inside else "no",
        )
        for index, one in enumerate(found.candidates)
    )  # fmt: skip
    frontier = tuple(
        ("frontier", number(p.bits_per_weight, 4), "", number(p.predicted), "", "")
        for p in found.predicted_frontier
    )
    return Table(
        caption=f"Candidates and the predicted frontier, losses in {unit(found)}",
        head=("candidate", "bits a weight", "size", "predicted", "measured", "inside the budget"),
        rows=(*rows, *frontier),
        words=frozenset({0, 5}),
    )
