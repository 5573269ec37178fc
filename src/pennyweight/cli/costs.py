"""`pennyweight costs`: measure what products take here, for `plan --minimize latency`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from pennyweight.cli.options import Model, Quiet, TrustRemoteCode, names

if TYPE_CHECKING:
    from pennyweight.pipeline.latency import Latencies


def costs_command(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file, as costs.json.")],
    schemes: Annotated[
        str | None,
        typer.Option(
            help="Such as W4A16_g64,W8A16; if not given those that have kernels and vLLM serves. "
            "Untouched linears are always timed."
        ),
    ] = None,
    tokens: Annotated[
        int, typer.Option(min=1, help="Rows of the input: 1 is decoding for one user.")
    ] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Times of which the median is taken.")] = 30,
    dtype: Annotated[
        str | None,
        typer.Option(help="bfloat16, float16 or float32; the checkpoint's if not given."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the numbers that are multiplied.")] = 0,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads that a product is spread over.")
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and not a table.")] = False,
) -> None:
    """Time one product of each linear shape of MODEL in each scheme, with torch's CPU kernels.

    OUTPUT is for `pennyweight plan --minimize latency --costs OUTPUT`. A scheme or shape that torch
    has no kernel for is left out, and OUTPUT says why. The times are those of this machine.
    """
    from pennyweight.cli.progress import progress_on
    from pennyweight.pipeline.latency import SCHEMES, Asked, measure_latencies

    asked = Asked(
        model=model, schemes=names(schemes) or SCHEMES, dtype=dtype, tokens=tokens, rounds=rounds,
        seed=seed, trust_remote_code=trust_remote_code,
    )  # fmt: skip
    console = Console(stderr=True, highlight=False)
    with progress_on(console, quiet=quiet) as progress:
        found = measure_latencies(asked, threads=threads, progress=progress)
    found.save(output)
    for each in found.left_out:
        shape = f" of {each.shape[0]} x {each.shape[1]}" if each.shape else ""
        console.print(f"left out: {each.scheme}{shape}: {each.why}", markup=False, soft_wrap=True)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=1))
    else:
        _show(found, output, Console(highlight=False))


def _show(found: "Latencies", output: Path, console: Console) -> None:
    """A row for each shape: microseconds, and how many times as fast as untouched."""
    from pennyweight.formats.schemes import UNTOUCHED
    from pennyweight.pipeline.latency import by_shape

    names = dict.fromkeys(each.scheme for each in found.times)
    schemes = sorted(names, key=lambda name: name == UNTOUCHED)  # it comes last
    table = Table("out x in", *schemes)
    for column in table.columns[1:]:
        column.justify = "right"
    for shape, row in by_shape(found.times).items():
        plain = row[UNTOUCHED].seconds
        cells = [
            f"{row[name].seconds * 1e6:.4g} ({plain / row[name].seconds:.2f}x)"
            if name in row
            else "-"
            for name in schemes
        ]
        table.add_row(f"{shape[0]} x {shape[1]}", *cells)
    console.print(table)
    timing = found.timing
    console.print(
        f"{output}: microseconds of a product with {timing.tokens} "
        f"{'token' if timing.tokens == 1 else 'tokens'} in {found.dtype} on {found.threads} "
        f"{'thread' if found.threads == 1 else 'threads'}, median of {timing.rounds}; in brackets "
        f"how many times as fast as {UNTOUCHED}; - has no kernel",
        markup=False, soft_wrap=True,
    )  # fmt: skip
