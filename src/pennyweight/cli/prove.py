"""`pennyweight prove`: check a quantized directory again, on this machine."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pennyweight.cli.options import TrustRemoteCode


def prove_command(
    directory: Annotated[Path, typer.Argument(help="A directory that quantize made.")],
    source: Annotated[str, typer.Option(help="The model it was made from: directory or Hub id.")],
    trust_remote_code: TrustRemoteCode = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the proof as JSON.")] = False,
) -> None:
    """Census, weights bit for bit, and the logits of transformers' reload, checked anew."""
    from pennyweight.cli.quantize import show_proof
    from pennyweight.pipeline.prove import prove

    proof = prove(directory, source, trust_remote_code=trust_remote_code)
    if as_json:
        typer.echo(json.dumps(proof, indent=1))
    else:
        show_proof(proof, Console(highlight=False))
