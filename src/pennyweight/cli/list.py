"""`pennyweight list`: what can be named in a recipe, from the tables themselves."""

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

Row = tuple[str, ...]


class Kind(StrEnum):
    formats = "formats"
    schemes = "schemes"
    quantizers = "quantizers"
    transforms = "transforms"
    trainers = "trainers"
    saliencies = "saliencies"
    targets = "targets"
    estimators = "estimators"
    allocators = "allocators"
    calibrations = "calibrations"


def list_command(kind: Annotated[Kind, typer.Argument(help="Which table.")]) -> None:
    """List what a recipe can name: one line each, and where it is described."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)  # the name, to be copied
    for row in ROWS[kind]():
        table.add_row(*row)
    Console(highlight=False).print(table)


def _formats() -> list[Row]:
    from pennyweight.formats.schemes import GRAMMAR

    return [(shape, about, source) for shape, about, source in GRAMMAR]


def _schemes() -> list[Row]:
    from pennyweight.formats.schemes import COMMON

    return [(name,) for name in COMMON]


def _quantizers() -> list[Row]:
    from pennyweight.quantize import QUANTIZERS

    return _described(QUANTIZERS)


def _transforms() -> list[Row]:
    from pennyweight.transform import TRANSFORMS

    return _described(TRANSFORMS)


def _trainers() -> list[Row]:
    from pennyweight.train import TRAINERS

    return _described(TRAINERS)


def _saliencies() -> list[Row]:
    from pennyweight.saliency import SALIENCIES

    return _described(SALIENCIES)


def _targets() -> list[Row]:
    from pennyweight.export import TARGETS

    return [(name, target.about, target.serves) for name, target in TARGETS.items()]


def _calibrations() -> list[Row]:
    from pennyweight.model.calibration import CALIBRATIONS

    rows: list[Row] = [(name, entry.about, entry.source) for name, entry in CALIBRATIONS.items()]
    files = ".txt, .raw, .md, .jsonl with 'text', chats or questions of a task, .json of token ids"
    mixed = "a mix: so much of the samples is of each"
    return [*rows, ("FILE", files, "-"), ("A*0.7+B*0.3", mixed, "-")]


def _allocators() -> list[Row]:
    from pennyweight.allocate import ALLOCATORS

    return _described(ALLOCATORS)


def _estimators() -> list[Row]:
    from pennyweight.study.sensitivity.estimators import ESTIMATORS

    rows = _described(ESTIMATORS)
    return [(name, f"{line} {ESTIMATORS[name].cost}", source) for name, line, source in rows]


def _described(table: Mapping[str, Any]) -> list[Row]:
    """The first line of each docstring, and the source."""
    lines = {name: (cls.__doc__ or "").strip().splitlines()[0] for name, cls in table.items()}
    return [(name, line, table[name].source) for name, line in lines.items()]


ROWS: dict[Kind, Callable[[], list[Row]]] = {
    Kind.formats: _formats,
    Kind.schemes: _schemes,
    Kind.quantizers: _quantizers,
    Kind.transforms: _transforms,
    Kind.trainers: _trainers,
    Kind.saliencies: _saliencies,
    Kind.targets: _targets,
    Kind.estimators: _estimators,
    Kind.allocators: _allocators,
    Kind.calibrations: _calibrations,
}
