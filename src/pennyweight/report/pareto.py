"""Size against quality: what every further byte buys."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from pennyweight.export.card import readable_bytes
from pennyweight.report.content import Absent, Plot, Section, Table, Text
from pennyweight.report.figure import axis, figure, log_axis, marker
from pennyweight.report.material import Material
from pennyweight.report.quality import Score, comparable, scores
from pennyweight.report.words import label, number, shown

TITLE = "Size and quality"


def section(material: Material) -> Section | Absent:
    found = sorted(comparable(scores(material)), key=size)
    if len(found) < 2:
        return Absent(
            title=TITLE,
            need="two or more directories that were measured against their reference on the same "
            "text",
        )
    best = front(found)
    names = ", ".join(score.model.name for score in best)
    beaten = [score.model.name for score in found if score not in best]
    said = f"Nothing here is both smaller and closer to the reference than {names}."
    if beaten:
        said += f" Beaten in both: {', '.join(beaten)}."
    return Section(name="pareto", title=TITLE, parts=(Text(text=said), _plot(found, best)))


def size(score: Score) -> int:
    return score.model.proof.proof.size.bytes_after


def loss(score: Score) -> float:
    return score.metrics["kl_nats"].value


def front(found: Sequence[Score]) -> list[Score]:
    """Those that no other is at least as small and as good as, and better in one of the two."""

    def beats(a: Score, b: Score) -> bool:
        return (
            size(a) <= size(b) and loss(a) <= loss(b) and (size(a), loss(a)) != (size(b), loss(b))
        )

    return [score for score in found if not any(beats(other, score) for other in found)]


def _plot(found: Sequence[Score], best: Sequence[Score]) -> Plot:
    line = go.Scatter(
        x=[size(s) / 1e6 for s in best], y=[loss(s) for s in best], mode="lines",
        line={"color": "var(--rule)", "width": 2, "dash": "dot"}, hoverinfo="skip",
        name="nothing better in both",
    )  # fmt: skip
    points = [_point(score, index) for index, score in enumerate(found)]
    rows = tuple(
        (
            s.model.name, readable_bytes(size(s)),
            number(s.model.proof.proof.size.bits_per_weight), shown(s.metrics["kl_nats"], ".3g"),
            "yes" if s in best else "no",
        )
        for s in found
    )  # fmt: skip
    return Plot(
        name="pareto",
        title="KL divergence against size",
        label=f"Scatter plot of {len(found)} models: size of the files in megabytes against KL "
        "divergence from the reference in nats a token. Lower left is better.",
        figure=figure(
            [line, *points],
            x=axis("size of the weights, MB", rangemode="tozero"),
            y=log_axis("KL divergence, nats a token", map(loss, found)),
        ),
        table=Table(
            caption=f"Size and KL divergence, on {found[0].conditions}",
            head=("model", "size", "bits a weight", "KL, nats a token", "on the front"),
            rows=rows,
            words=frozenset({0, 4}),
        ),
        height=400,
    )


def _point(score: Score, index: int) -> go.Scatter:
    kl = score.metrics["kl_nats"]
    known = kl.low == kl.low and kl.high == kl.high
    return go.Scatter(
        x=[size(score) / 1e6], y=[kl.value], mode="markers", name=label(score.model.name),
        marker=marker(index, 12),
        error_y={
            "type": "data", "symmetric": False, "color": "var(--muted)", "thickness": 1.5,
            "array": [kl.high - kl.value if known else 0],
            "arrayminus": [kl.value - kl.low if known else 0],
        },
        hovertemplate="%{x:.3g} MB, %{y:.3g} nats<extra>%{fullData.name}</extra>",
    )  # fmt: skip
