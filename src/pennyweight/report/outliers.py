"""What activations look like: kurtosis, loud channels, and what rounding them costs."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from pennyweight.report.content import Absent, Plot, Section, Table, Text
from pennyweight.report.figure import axis, colour, figure, log_axis, marker
from pennyweight.report.files import PlaceFacts, PortraitFacts, ProfileFile
from pennyweight.report.material import Material
from pennyweight.report.words import label, number, short

TITLE = "Outliers of the activations"
NORMAL_KURTOSIS = 3.0


@dataclass(frozen=True, kw_only=True)
class Input:
    """An input of linears on one calibration set."""

    name: str
    block: int
    kind: str  # who reads it, without the block: `q_proj, k_proj, v_proj`
    portrait: PortraitFacts


def section(material: Material) -> Section | Absent:
    profile = material.profile
    if profile is None:
        return Absent(
            title=TITLE,
            need=f"`pennyweight profile {shlex.quote(material.models[0].plan.model)} --json "
            "> profile.json`, given with --profile",
        )
    first = next(iter(profile.calibration), "")
    seen = inputs(profile, first)
    if not seen:
        return Absent(title=TITLE, need="a profile of a model with linears")
    advice = [Text(text=sentence) for sentence in profile.advice]
    what = Text(
        text=f"Inputs of linears in {short(profile.model)}, seen on {first}; first tokens are left "
        "out of kurtosis and channels. Kurtosis is 3 for a normal distribution; a largest channel "
        "far above the median one asks for smoothing. Signal to noise is what reaches the outputs "
        "when the input is rounded to int8."
    )
    return Section(
        name="outliers",
        title=TITLE,
        parts=(
            *advice, what,
            _plot(profile, seen, "kurtosis", "kurtosis", lambda p: p.kurtosis),
            _plot(profile, seen, "channels", "largest over median channel",
                  lambda p: p.max_to_median),
            _noise(profile, seen),
        ),
    )  # fmt: skip


def inputs(profile: ProfileFile, set_name: str) -> list[Input]:
    return [
        Input(name=p.name, block=p.block, kind=kind_of(p), portrait=p.portraits[set_name])
        for p in profile.places
        if p.kind == "input" and set_name in p.portraits
    ]


def kind_of(place: PlaceFacts) -> str:
    """`model.layers.3.self_attn.q_proj, self_attn.k_proj` -> `q_proj, k_proj`."""
    below = re.sub(r"^.*?\.\d+\.", "", place.name)
    return ", ".join(part.rpartition(".")[2] for part in below.split(", "))


def _plot(
    profile: ProfileFile,
    seen: Sequence[Input],
    name: str,
    title: str,
    of: Callable[[PortraitFacts], float | None],
) -> Plot:
    kinds = list(dict.fromkeys(one.kind for one in seen))
    traces = [
        go.Scatter(
            x=[one.block for one in seen if one.kind == kind],
            y=[_positive(of(one.portrait)) for one in seen if one.kind == kind],
            mode="lines+markers", name=label(kind), marker=marker(index, 9),
            line={"width": 1.5, "color": colour(index)},
            hovertemplate="block %{x}: %{y:.3g}<extra>%{fullData.name}</extra>",
        )
        for index, kind in enumerate(kinds)
    ]  # fmt: skip
    values = [of(one.portrait) for one in seen]
    layout = {"shapes": [_normal()]} if name == "kurtosis" else {}
    return Plot(
        name=name,
        title=f"{title.capitalize()} of each input",
        label=f"Line plot of {title} of each input, block by block.",
        figure=figure(traces, x=axis("block", **_whole(seen)), y=log_axis(title, values), **layout),
        table=_table(profile, name),
        height=380,
    )


def _noise(profile: ProfileFile, seen: Sequence[Input]) -> Plot:
    """A line from one scale a sample to one a token, for each input."""
    ways = (
        ("one scale a sample", lambda p: p.whole_tensor_sqnr_db, 1),
        ("one scale a token", lambda p: p.token_sqnr_db, 0),
    )
    names = [label(f"{one.block} {one.kind}") for one in seen]
    traces = [
        go.Scatter(
            x=[of(one.portrait) for one in seen], y=names, mode="markers", name=way,
            marker=marker(index, 10, is_open=index == 1),
            hovertemplate="%{y}: %{x:.1f} dB<extra>%{fullData.name}</extra>",
        )
        for way, of, index in ways
    ]  # fmt: skip
    lines = [
        {
            "type": "line", "x0": one.portrait.whole_tensor_sqnr_db,
            "x1": one.portrait.token_sqnr_db, "y0": name, "y1": name, "layer": "below",
            "line": {"color": "var(--rule)", "width": 2},
        }
        for one, name in zip(seen, names, strict=True)
        if None not in (one.portrait.whole_tensor_sqnr_db, one.portrait.token_sqnr_db)
    ]  # fmt: skip
    return Plot(
        name="noise",
        title="Signal to noise of each input in int8",
        label="Signal to noise in decibels of each input rounded to int8, with one scale a sample "
        "and with one scale a token. More is better.",
        figure=figure(
            traces,
            x=axis("signal to noise, dB"),
            y=axis("", autorange="reversed", type="category", dtick=1, tickfont={"size": 11}),
            shapes=lines,
        ),
        table=_table(profile, "noise"),
        height=90 + len(seen) * 22,
    )


def _table(profile: ProfileFile, name: str) -> Table:
    """Of all calibration sets, also of those the plot leaves out."""
    columns: dict[str, tuple[tuple[str, Callable[[PortraitFacts], float | None]], ...]] = {
        "kurtosis": (("kurtosis", lambda p: p.kurtosis), ("absmax", lambda p: p.absmax)),
        "channels": (("largest over median", lambda p: p.max_to_median),),
        "noise": (
            ("dB, a sample", lambda p: p.whole_tensor_sqnr_db),
            ("dB, a token", lambda p: p.token_sqnr_db),
        ),
    }
    rows = tuple(
        (set_name, f"{one.block}", one.kind, *(number(of(one.portrait)) for _, of in columns[name]))
        for set_name in profile.calibration
        for one in inputs(profile, set_name)
    )
    return Table(
        caption="Inputs of linears, on every calibration set",
        head=("set", "block", "input of", *(title for title, _ in columns[name])),
        rows=rows,
        words=frozenset({0, 2}),
    )


def _normal() -> dict[str, object]:
    return {
        "type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": NORMAL_KURTOSIS,
        "y1": NORMAL_KURTOSIS, "line": {"color": "var(--muted)", "width": 1.5, "dash": "dash"},
        "label": {"text": "normal distribution", "textposition": "start", "yanchor": "top",
                  "font": {"color": "var(--muted)", "size": 11}},
    }  # fmt: skip


def _whole(seen: Sequence[Input]) -> dict[str, object]:
    """Ticks at whole blocks."""
    return {"dtick": 1 if max(one.block for one in seen) < 12 else 4}


def _positive(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) and value > 0 else None
