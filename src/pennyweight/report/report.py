"""The verb `report`: from files to one page that opens anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pennyweight.core import DataError
from pennyweight.model.writer import write_text
from pennyweight.report import (
    blocks,
    calibration,
    diagnosis,
    frontier,
    generations,
    outliers,
    pareto,
    provenance,
    quality,
    summary,
)
from pennyweight.report.content import Absent, Section
from pennyweight.report.material import Material
from pennyweight.report.page import page
from pennyweight.report.words import short

SECTIONS = (
    summary, quality, pareto, frontier, blocks, diagnosis, outliers, calibration, generations,
    provenance,
)  # fmt: skip


def write_report(material: Material, output: Path) -> tuple[Absent, ...]:
    """Write the page, whole or not at all, and return what was left out for want of data.

    Raises DataError, CheckpointError if there is no place to write to.
    """
    if not output.parent.is_dir():
        raise DataError(f"{output}: there is no folder {output.parent}; make it first")
    if output.is_dir():
        raise DataError(f"{output}: is a folder; expected the name of an .html file")
    found = list(sections(material))
    kept = [each for each in found if isinstance(each, Section)]
    absent = tuple(each for each in found if isinstance(each, Absent))
    write_text(output, page(title(material), kept, absent))
    return absent


def sections(material: Material) -> Iterator[Section | Absent]:
    for module in SECTIONS:
        yield module.section(material)


def title(material: Material) -> str:
    sources = list(dict.fromkeys(short(model.plan.model) for model in material.models))
    return f"{', '.join(sources)}, quantized"
