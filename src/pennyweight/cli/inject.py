"""`pennyweight inject-outliers`: a model that is hard to quantize, made from one that is not."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pennyweight.cli.options import Model


def inject_command(
    model: Model,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A directory that does not exist yet.")
    ],
    alpha: Annotated[
        float, typer.Option(help="How much louder; a power of two changes no bit of the logits.")
    ] = 100.0,
    channels: Annotated[int, typer.Option(min=1, help="How many channels of every norm.")] = 4,
    seed: Annotated[int, typer.Option(help="Of the choice of channels.")] = 0,
) -> None:
    """Test instrument: a copy of MODEL with loud channels that computes the same logits.

    Its norms are turned up in a few channels and the weights behind them down, so that only
    quantization tells the difference.
    """
    from pennyweight.pipeline.inject import inject_outliers

    found = inject_outliers(model, output, alpha=alpha, channels=channels, seed=seed)
    for line in found.told:
        Console(stderr=True, highlight=False).print(line, markup=False, soft_wrap=True)
    Console(highlight=False).print(
        f"{found.path}: channels {', '.join(map(str, found.channels))} are {found.alpha:g} times "
        f"louder behind {len(found.norms)} norms",
        soft_wrap=True,
    )
