"""Sections as one HTML file: style, script, plots and Plotly itself inside it, nothing outside.

Every text that comes from a file is escaped. The page's own policy forbids it to load anything.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Sequence
from importlib.resources import files

from pennyweight.report.content import (
    Absent,
    Card,
    Cards,
    Code,
    Facts,
    Heading,
    Pair,
    Part,
    Plot,
    Section,
    Table,
    Text,
)

# Inline is all there is: no host is named, so that an open page asks nobody for anything. Plotly
# compiles nothing for the plots used here; pictures of plots are data.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; base-uri 'none'; form-action 'none'"
)
PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="pennyweight">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>
{style}
</style>
</head>
<body>
<header>
<p class="kicker">Pennyweight report</p>
<h1>{title}</h1>
<nav aria-label="Sections">{nav}</nav>
</header>
<main>
{main}
</main>
<footer>{footer}</footer>
<script>{plotly}</script>
<script type="application/json" id="plots">{plots}</script>
<script>
{script}
</script>
</body>
</html>
"""


def page(title: str, sections: Sequence[Section], absent: Sequence[Absent]) -> str:
    """The whole file."""
    from plotly.offline import get_plotlyjs

    own = files("pennyweight.report")
    plots = [part for section in sections for part in section.parts if isinstance(part, Plot)]
    assert len({plot.name for plot in plots}) == len(plots), "two plots have one name"
    return PAGE.format(
        policy=html.escape(POLICY),
        title=html.escape(title),
        style=(own / "page.css").read_text(encoding="utf-8"),
        nav=" ".join(f'<a href="#{s.name}">{html.escape(s.title)}</a>' for s in sections),
        main="\n".join(map(_section, sections)),
        footer=_footer(absent),
        plotly=get_plotlyjs() if plots else "",
        plots=_json({plot.name: plot.figure for plot in plots}),
        script=(own / "page.js").read_text(encoding="utf-8"),
    )


def inline(text: str) -> str:
    """Escaped, and what is between backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def _json(value: object) -> str:
    """JSON inside a script element: nothing in it may end the element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _section(section: Section) -> str:
    parts = "\n".join(map(_part, section.parts))
    return (
        f'<section id="{section.name}" aria-labelledby="{section.name}-title">\n'
        f'<h2 id="{section.name}-title">{html.escape(section.title)}</h2>\n{parts}\n</section>'
    )


def _part(part: Part) -> str:
    match part:
        case Text():
            return f"<p>{inline(part.text)}</p>"
        case Code():
            return f"<pre>{html.escape(part.text)}</pre>"
        case Heading():
            return f"<h3>{html.escape(part.text)}</h3>"
        case Table():
            return _table(part, stacked=True)
        case Plot():
            return _plot(part)
        case Cards():
            return f'<div class="cards">{"".join(map(_card, part.cards))}</div>'
        case Pair():
            return _pair(part)
        case Facts():
            rows = (f"<dt>{html.escape(k)}</dt><dd>{inline(v)}</dd>" for k, v in part.rows)
            return f"<dl>{''.join(rows)}</dl>"


def _table(table: Table, *, stacked: bool) -> str:
    """stacked: on a phone every row is a block of its own. The roles stay what a screen reader
    needs when the style takes rows apart."""
    head = "".join(
        f'<th scope="col" role="columnheader"{_align(table, i)}>{html.escape(name)}</th>'
        for i, name in enumerate(table.head)
    )
    rows = "".join(f'<tr role="row">{"".join(_cells(table, row))}</tr>' for row in table.rows)
    kind = ' class="stacked"' if stacked else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(table.caption)}">'
        f'<table role="table"{kind}><caption>{html.escape(table.caption)}</caption>'
        f'<thead role="rowgroup"><tr role="row">{head}</tr></thead>'
        f'<tbody role="rowgroup">{rows}</tbody></table></div>'
    )


def _cells(table: Table, row: Sequence[str]) -> Iterator[str]:
    for index, (name, cell) in enumerate(zip(table.head, row, strict=True)):
        text, title = _cell(cell, index not in table.words), html.escape(name)
        if index == 0:
            yield f'<th scope="row" role="rowheader"{_align(table, 0)}>{text}</th>'
        else:
            yield f'<td role="cell" data-head="{title}"{_align(table, index)}>{text}</td>'


def _cell(cell: str, is_number: bool) -> str:
    """The interval of a number is set smaller than the number."""
    parts = re.fullmatch(r"(.+) \((.+)\)", cell) if is_number else None
    if parts is None:
        return html.escape(cell)
    return f"<span>{html.escape(parts[1])} <small>({html.escape(parts[2])})</small></span>"


def _align(table: Table, index: int) -> str:
    return "" if index in table.words else ' class="number"'


def _plot(plot: Plot) -> str:
    label = html.escape(plot.label)
    return (
        f"<figure><figcaption>{html.escape(plot.title)}</figcaption>"
        f'<div class="plot" id="plot-{plot.name}" data-plot="{plot.name}" '
        f'role="img" aria-label="{label}" '
        f'style="height:{plot.height}px"><noscript>Plots need JavaScript; the table below holds '
        f"the same numbers.</noscript></div>"
        f"<details><summary>{html.escape(plot.table.caption)}: the numbers</summary>"
        f"{_table(plot.table, stacked=False)}</details></figure>"
    )


def _card(card: Card) -> str:
    numbers = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd><b>{html.escape(value)}</b>"
        f"<small>{html.escape(ends)}</small></dd></div>"
        for name, value, ends in card.numbers
    )
    tasks = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd><b>{html.escape(value)}</b> "
        f"<small>{html.escape(ends)}</small></dd></div>"
        for name, value, ends in card.rows
    )
    rows = f'<dl class="rows">{tasks}</dl>' if tasks else ""
    badges = "".join(
        f'<p class="badge {badge.tone}"><span aria-hidden="true">{badge.mark}</span> '
        f"{html.escape(badge.text)}</p>"
        for badge in card.badges
    )
    return (
        f'<article class="card"><h3>{html.escape(card.title)}</h3>'
        f'<p class="subtitle">{html.escape(card.subtitle)}</p>'
        f'<div class="badges">{badges}</div><dl>{numbers}</dl>'
        f"{rows}</article>"
    )


def _pair(pair: Pair) -> str:
    sides = (("reference", pair.reference), ("quantized", pair.model))
    written = "".join(
        f'<div><h4>{who}</h4><pre><span class="same">{html.escape(text[: pair.shared])}</span>'
        f"{_mark(text, pair.shared)}{html.escape(text[pair.shared :])}{_none(text)}</pre></div>"
        for who, text in sides
    )
    prompt = html.escape(pair.prompt)
    return (
        f'<article class="pair"><h3>{html.escape(pair.name)}</h3>'
        f'<pre class="prompt">{prompt}</pre><div class="sides">{written}</div></article>'
    )


def _none(text: str) -> str:
    return "" if text.strip() else '<span class="none">nothing</span>'


def _mark(text: str, shared: int) -> str:
    """Where the texts part; none if there is nothing after it."""
    if shared >= len(text):
        return ""
    return '<span class="parts" role="img" aria-label="here the texts part">▸</span>'


def _footer(absent: Sequence[Absent]) -> str:
    if not absent:
        return "<p>Made by Pennyweight. Nothing on this page was loaded from anywhere.</p>"
    said = "; ".join(f"<b>{html.escape(a.title)}</b>: {inline(a.need)}" for a in absent)
    return f"<p>Left out for want of data, with what would make it: {said}.</p>"
