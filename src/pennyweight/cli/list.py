"""`pennyweight list`: what can be named in a recipe, from the tables themselves."""

from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table


class Kind(StrEnum):
    formats = "formats"
    quantizers = "quantizers"
    schemes = "schemes"


def list_command(kind: Annotated[Kind, typer.Argument(help="Which table.")]) -> None:
    """List the formats, quantizers or schemes by name."""
    table = Table(box=None, show_header=False)
    for row in ROWS[kind]():
        table.add_row(*row)
    Console(highlight=False).print(table)


def _formats():
    from pennyweight.formats import GRIDS

    return [(name, f"{grid.bits} bits, {2**grid.bits} values") for name, grid in GRIDS.items()]


def _quantizers():
    from pennyweight.quantize import QUANTIZERS

    lines = {name: (cls.__doc__ or "").strip().splitlines()[0] for name, cls in QUANTIZERS.items()}
    return [(name, line, QUANTIZERS[name].source) for name, line in lines.items()]


def _schemes():
    from pennyweight.formats.schemes import COMMON

    return [(name,) for name in COMMON]


ROWS = {Kind.formats: _formats, Kind.quantizers: _quantizers, Kind.schemes: _schemes}
