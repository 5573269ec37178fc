"""`pennyweight report`: one page that shows what was made and measured."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def report_command(
    directories: Annotated[
        list[Path], typer.Argument(help="Directories that quantize made.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page.")] = Path("report.html"),
    records: Annotated[
        list[Path] | None, typer.Option(help="A store, of eval or a study. Repeatable.")
    ] = None,
    profile: Annotated[
        Path | None, typer.Option(help="What `profile MODEL --json` printed.")
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(help="A plan.toml with its .frontier.json beside it.")
    ] = None,
    samples: Annotated[
        Path | None, typer.Option(help="What `eval --similarity --samples` wrote.")
    ] = None,
    diagnosis: Annotated[
        Path | None, typer.Option(help="What `diagnose MODEL QUANTIZED --json` printed.")
    ] = None,
    budget: Annotated[
        float,
        typer.Option(min=0, help="Loss of perplexity and of task scores that is allowed, percent."),
    ] = 1.0,
) -> None:
    """Show what was made and measured as one HTML file that needs no network.

    Measures nothing. Besides the options it looks into each directory for evaluation.json (what
    `eval DIR --against MODEL --json` printed) and samples.jsonl; what there is no data for is left
    out, and the page says what would make it.
    """
    from pennyweight.report.material import Sources, gather
    from pennyweight.report.report import write_report

    sources = Sources(
        directories=directories, records=records or [], profile=profile, plan=plan,
        samples=samples, diagnosis=diagnosis,
    )  # fmt: skip
    command = f"pennyweight {shlex.join(sys.argv[1:])}"
    absent = write_report(gather(sources, budget_percent=budget, command=command), output)
    if absent:
        titles = ", ".join(each.title for each in absent)
        Console(stderr=True).print(
            f"left out for want of data: {titles}; the page says what makes them",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
    typer.echo(str(output))
