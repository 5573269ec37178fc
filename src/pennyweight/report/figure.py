"""Figures in one look: axes, markers and colours that the style sheet names.

Colours are `var(--name)`; the page puts in what the style sheet says for light or dark. Series
differ in the shape of their markers too, so that nobody needs the colour.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from pennyweight.report.words import number

SHAPES = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon")
COLOURS = 6  # --series-1 to --series-6 of the style sheet
HEAT = [[i / 4, f"var(--heat-{i})"] for i in range(5)]


def colour(index: int) -> str:
    return f"var(--series-{index % COLOURS + 1})"


def marker(index: int, size: int = 10, *, is_open: bool = False) -> dict[str, Any]:
    """Of the series with this number: 24 differ in shape, colour or both."""
    shape = SHAPES[index % len(SHAPES)]
    return {
        "symbol": f"{shape}-open" if is_open else shape, "size": size, "color": colour(index),
        "line": {"width": 2 if is_open else 1, "color": colour(index)},
    }  # fmt: skip


def axis(title: str, **more: Any) -> dict[str, Any]:
    return {
        "title": {"text": title, "standoff": 12}, "automargin": True, "zeroline": False,
        "gridcolor": "var(--grid)", "linecolor": "var(--rule)", "tickcolor": "var(--rule)",
        "showline": False, "ticks": "", "minor": {"showgrid": False}, "exponentformat": "power",
    } | more  # fmt: skip


def log_axis(title: str, values: Iterable[float | None]) -> dict[str, Any]:
    """Ticks at 1, 2 and 5 where the values span little, else at powers of ten; all written out.

    Values of 0 and below have no place on it: with one of these the axis is linear.
    """
    known = [v for v in values if v is not None and math.isfinite(v)]
    if not known or min(known) <= 0:
        return axis(title)
    low, high = math.floor(math.log10(min(known))), math.ceil(math.log10(max(known)))
    steps = (1, 2, 5) if high - low <= 2 else (1,)
    ticks = [step * 10.0**power for power in range(low, high + 1) for step in steps]
    return axis(title, type="log", tickvals=ticks, ticktext=[number(tick, 2) for tick in ticks])


def figure(
    traces: Sequence[Any], *, x: dict[str, Any], y: dict[str, Any], **layout: Any
) -> dict[str, Any]:
    """{data, layout}, checked by Plotly: a misspelt property raises here and not in a browser."""
    made = go.Figure(data=list(traces), layout=look() | {"xaxis": x, "yaxis": y} | layout)
    return plain(made)


def look() -> dict[str, Any]:
    return {
        "template": go.layout.Template(), "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)", "dragmode": False, "hovermode": "closest",
        "font": {"color": "var(--ink)", "family": "system-ui, sans-serif", "size": 13},
        "hoverlabel": {
            "bgcolor": "var(--paper)", "bordercolor": "var(--rule)", "font": {"color": "var(--ink)"}
        },
        "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "title": {}},
    }  # fmt: skip


def plain(made: go.Figure) -> dict[str, Any]:
    found = made.to_plotly_json()
    return {"data": _finite(found["data"]), "layout": _finite(found["layout"])}


def _finite(value: Any) -> Any:
    """JSON has no NaN; Plotly leaves out what is null."""
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
