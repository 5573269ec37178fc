"""The options of verbs whose work other processes can share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pennyweight.model.engine import Engine

EngineName = Annotated[
    str,
    typer.Option(
        "--engine", help="Who computes: local, or ray, a cluster (the extra of that name)."
    ),
]
Address = Annotated[
    str | None, typer.Option("--address", help="Of a Ray cluster that runs, such as auto.")
]
RayWorkers = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Ray workers; time only, never the result."),
]


@contextmanager
def engine_of(name: str, address: str | None, workers: int | None) -> Iterator[Engine]:
    """The engine that the options spell; its processes end with the `with` block."""
    from pennyweight.model.engine import make_engine

    engine = make_engine(name, address=address, workers=workers)
    # Ray tells on standard output that a node died, which is where our result goes.
    elsewhere = nullcontext() if engine.is_local else redirect_stdout(sys.stderr)
    try:
        with elsewhere:
            yield engine
    finally:
        engine.close()
