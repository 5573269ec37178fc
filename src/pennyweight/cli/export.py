"""`pennyweight export`: a checkpoint once more from a kept work directory."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def export_command(
    work: Annotated[Path, typer.Argument(help="A work directory that quantize --keep-work left.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A directory that does not exist yet.")
    ],
    model: Annotated[
        str | None, typer.Option(help="Where the source model is now, if it has moved.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="compressed-tensors, packed or dense; else as planned.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the proof as JSON.")] = False,
) -> None:
    """Write the checkpoint of a finished work directory, and prove it."""
    from pennyweight.cli.quantize import show_proof
    from pennyweight.pipeline.finish import export

    proof = export(work, output, model=model, target=target)
    if as_json:
        typer.echo(json.dumps(proof, indent=1))
    else:
        show_proof(proof, Console(highlight=False))
