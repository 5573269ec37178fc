"""`pennyweight study scaling`: mixed precision over the sizes of a family."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pennyweight.cli.engine import Address, EngineName, RayWorkers, engine_of
from pennyweight.cli.options import Overrides, Quiet, Threads

if TYPE_CHECKING:
    from pennyweight.study.scaling.fit import Findings, Search

RECORDS = "records.sqlite"


def scaling_command(
    file: Annotated[Path, typer.Argument(help="A study in TOML.", show_default=False)],
    records: Annotated[Path, typer.Option(help="The store of results.")] = Path(RECORDS),
    work: Annotated[
        Path | None,
        typer.Option(help="A folder for the quantized weights, which stay there. Without it they "
                     "are beside the records and deleted in the end."),
    ] = None,
    engine: EngineName = "local",
    address: Address = None,
    workers: RayWorkers = None,
    overrides: Overrides = None,
    threads: Threads = None,
    quiet: Quiet = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the tables as JSON.")] = False,
) -> None:  # fmt: skip
    """How much of a model can be in low precision? Models x formats x units x ratios x trials.

    Random search and exact allocation at each quantization ratio; then the scaling laws. An
    interrupted study measures what is missing when the command is repeated.
    """
    import shutil
    from dataclasses import asdict

    from pennyweight.cli.progress import progress_on
    from pennyweight.records import Store
    from pennyweight.study.scaling.design import load_study, loss_budget
    from pennyweight.study.scaling.fit import findings
    from pennyweight.study.scaling.run import collect, run_scaling

    study, store = load_study(file, overrides or []), Store.open(records)
    folder = work or records.with_name(f"{records.name}.work")
    with (
        engine_of(engine, address, workers) as made,
        progress_on(Console(stderr=True), quiet=quiet) as progress,
    ):
        run_scaling(study, store, folder, engine=made, threads=threads, progress=progress)
    if work is None:
        shutil.rmtree(folder)
    found = findings(collect(study, store), [loss_budget(text) for text in study.budgets])
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=1))
    else:
        show(found)


def show(found: "Findings") -> None:
    """Every table."""
    _print("reachable Q_r", ("budget", *_OF, "model", "parameters", "Q_r", "over trials"), [
        (r.budget, *_of(r.of), r.model, f"{r.size:,}", f"{'>= ' * r.at_least}{r.ratio:.3f}",
         _band(r.over_trials)) for r in found.reach
    ])  # fmt: skip
    _print(
        "N = exp(k (1 - Q_r) + c), N in billions; gain: of Q_r when the size doubles",
        ("budget", *_OF, "models", "k", "c", "gain", "over trials", "over models",
         "held-out error", "Kendall", "p"),
        [(r.budget, *_of(r.of), r.models, r.k, r.c, r.gain, _band(r.gain_over_trials),
          _band(r.gain_over_models), r.heldout_error, r.kendall, r.kendall_p)
         for r in found.size],
    )  # fmt: skip
    _print("loss = A Q_b^k", ("metric", *_OF, "model", "Q_r", "A", "k", "over trials", "R2"), [
        (r.of.metric, *_of(r.of), r.model, r.ratio, r.A, r.k, _band(r.k_over_trials),
         r.r_squared) for r in found.block
    ])  # fmt: skip
    constants = ("C", "a", "alpha", "gamma", "d")
    _print(
        "loss = C exp(a Q_r) N^-alpha (Q_b^gamma + d), N in billions",
        ("metric", *_OF, *constants, "points", "fit off by", "held-out model off by"),
        [(r.of.metric, *_of(r.of),
          *(f"{getattr(r.law, name):.3g} ({_band(r.over_trials[name])})" for name in constants),
          r.law.points, f"x{_exp(r.law.deviation):.2f}",
          "-" if r.heldout_factor is None else f"x{r.heldout_factor:.2f}")
         for r in found.joint],
    )  # fmt: skip
    _print("Q_r reachable with matmuls as units, less that with layers",
           ("budget", *_OF, "model", "difference", "over trials"), [
        (r.budget, *_of(r.of), r.model, f"{'>= ' * r.at_least}{r.difference:+.3f}",
         _band(r.over_trials)) for r in found.granularity
    ])  # fmt: skip


_OF = ("format", "units", "search", "trials")


def _of(search: "Search") -> tuple[str, ...]:
    statistic = search.statistic if search.search == "random" else "one"
    return search.format, search.granularity, search.search, statistic


def _exp(value: float) -> float:
    import math

    return math.exp(value)


def _band(band: tuple[float, float] | None) -> str:
    return "-" if band is None else f"{band[0]:.3g} to {band[1]:.3g}"


def _print(title: str, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    if not rows:
        return
    console = Console(highlight=False)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in names:
        table.add_column(name)
    for row in rows:
        table.add_row(*(_text(value) for value in row))
    console.print(title)
    console.print(table)
    console.print()


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
