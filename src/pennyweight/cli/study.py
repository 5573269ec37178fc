"""`pennyweight study`: series of measurements that answer one question."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pennyweight.cli.engine import Address, EngineName, RayWorkers, engine_of
from pennyweight.cli.options import Overrides, Quiet, Threads
from pennyweight.cli.scaling import scaling_command

if TYPE_CHECKING:
    from pennyweight.study.calibration.design import Cell

study_app = typer.Typer(
    no_args_is_help=True, help="Series of measurements, kept as records; they continue."
)
study_app.command("scaling")(scaling_command)
RECORDS = "records.sqlite"
WIDTH = 130  # where there is no terminal to ask


@study_app.command("calibration")
def calibration_command(
    file: Annotated[Path, typer.Argument(help="A study in TOML.", show_default=False)],
    records: Annotated[Path, typer.Option(help="The store of results.")] = Path(RECORDS),
    metric: Annotated[str, typer.Option(help="What the tables show.")] = "kl_nats",
    engine: EngineName = "local",
    address: Address = None,
    workers: RayWorkers = None,
    overrides: Overrides = None,
    threads: Threads = None,
    quiet: Quiet = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the tables as JSON.")] = False,
) -> None:
    """Does it matter what a model is calibrated on? Methods x sets x samples x seeds, paired.

    Interrupted, the same command measures what is missing. Other metrics: perplexity,
    perplexity_change_percent, top1_agreement_percent.
    """
    from functools import partial

    from pennyweight.cli.progress import progress_on
    from pennyweight.core import RecipeError
    from pennyweight.records import Store
    from pennyweight.study.calibration.design import load_study
    from pennyweight.study.calibration.run import METRICS, collect, run_study

    if metric not in METRICS:
        raise RecipeError(f"--metric {metric}: expected one of {', '.join(METRICS)}")
    study, store = load_study(file, overrides or []), Store.open(records)
    with engine_of(engine, address, workers) as made:
        run = partial(run_study, study, store, engine=made, threads=threads)
        with progress_on(Console(stderr=True), quiet=quiet) as progress:
            run(progress=progress)
    _show(collect(study, store, metric), metric, as_json)


def _show(values: "dict[Cell, float]", metric: str, as_json: bool) -> None:
    from dataclasses import asdict

    from pennyweight.study.calibration.spread import differences, spreads, summarize

    rows, axes, pairs = summarize(values), spreads(values), differences(values)
    if as_json:
        found = {
            "metric": metric,
            "cells": [asdict(cell) | {"value": value} for cell, value in values.items()],
            "summary": [asdict(row) for row in rows],
            "spread": [asdict(row) for row in axes],
            "differences": [asdict(row) | {"verdict": row.verdict} for row in pairs],
        }
        typer.echo(json.dumps(_finite(found), indent=1))
        return
    _print(f"{metric}, over sample counts and seeds", [
        ("method", "set", "mean", "seed sd", "lowest", "highest"),
        *((r.method, r.set, r.mean, r.deviation, r.lowest, r.highest) for r in rows),
    ])  # fmt: skip
    _print("how far the means along an axis lie apart", [
        ("method", "axis", "sd", "range", "lowest at", "highest at"),
        *((r.method, r.axis, r.deviation, r.range, r.lowest_at, r.highest_at) for r in axes),
    ])  # fmt: skip
    if pairs:
        _print(f"against {pairs[0].reference}, seed by seed", [
            ("method", "set", "mean", "lowest", "highest", "p", "adjusted", "difference"),
            *((d.method, d.set, d.mean, d.lowest, d.highest, d.p, d.adjusted_p, d.verdict)
              for d in pairs),
        ])  # fmt: skip


def _print(title: str, rows: Sequence[Sequence[Any]]) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    table = Table(box=None, padding=(0, 2, 0, 0))
    for index, name in enumerate(rows[0]):
        is_number = isinstance(rows[1][index], float)
        table.add_column(name, justify="right" if is_number else "left", no_wrap=True)
    for row in rows[1:]:
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else v for v in row))
    console.print(title)
    console.print(table)
    console.print()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and value != value else value
