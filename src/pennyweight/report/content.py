"""What a page is put together from. Data only: sections make it, `page` writes it as HTML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Text:
    """A paragraph; `between backticks` is code."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Code:
    """Lines to copy."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Heading:
    """Of a part of a section."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells are texts and are written as they are."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: frozenset[int] = frozenset({0})  # columns of words; the others are numbers


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A figure of Plotly, with what it shows in a sentence and in a table."""

    name: str  # no other plot has it; letters, digits and '-'
    title: str  # above it
    label: str  # for who cannot see it
    figure: Mapping[str, Any]  # {data, layout}; colours may be 'var(--name)' of the style sheet
    table: Table
    height: int  # px


@dataclass(frozen=True, kw_only=True)
class Badge:
    """A verdict in a few words."""

    mark: str  # a sign, so that the colour is not alone in saying it
    tone: str  # good, fair, poor or none
    text: str


@dataclass(frozen=True, kw_only=True)
class Card:
    """A model at a glance."""

    title: str
    subtitle: str
    badges: tuple[Badge, ...]
    numbers: tuple[tuple[str, str, str], ...]  # name, value, interval or ''
    rows: tuple[tuple[str, str, str], ...] = ()  # the same, of names that may be long


@dataclass(frozen=True, kw_only=True)
class Cards:
    cards: tuple[Card, ...]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A prompt and what two models wrote after it. The first `shared` characters are the same."""

    name: str
    prompt: str
    reference: str
    model: str
    shared: int


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Names and what they stand for."""

    rows: tuple[tuple[str, str], ...]


Part = Text | Code | Heading | Table | Plot | Cards | Pair | Facts


@dataclass(frozen=True, kw_only=True)
class Section:
    """A chapter of the page."""

    name: str  # of the element
    title: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, kw_only=True)
class Absent:
    """A section that there is no data for."""

    title: str
    need: str  # what it would take, in words; commands between backticks
