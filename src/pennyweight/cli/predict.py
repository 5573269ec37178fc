"""`pennyweight predict`: how far a larger member of a measured family can go."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from pennyweight.study.scaling.predict import Prediction

RECORDS = "records.sqlite"


def predict_command(
    family: Annotated[
        Path,
        typer.Option(help="The records of a scaling study, or its .toml beside --records.",
                     show_default=False),
    ],
    size: Annotated[str, typer.Option(help="Parameters, such as 70B or 3M.", show_default=False)],
    budget: Annotated[
        str, typer.Option(help="5% of perplexity, or as kl<=0.05.", show_default=False)
    ],
    records: Annotated[Path, typer.Option(help="The store, if --family is a .toml.")] = Path(
        RECORDS
    ),
    study: Annotated[
        str | None, typer.Option(help="Name of the study, if the store has several.")
    ] = None,
    format: Annotated[str | None, typer.Option(help="The low precision, as MXINT4.")] = None,
    granularity: Annotated[str | None, typer.Option(help="matmul, fused or layer.")] = None,
    search: Annotated[str | None, typer.Option(help="random or exact.")] = None,
    statistic: Annotated[str, typer.Option(help="best or mean of the random trials.")] = "best",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and not a table.")] = False,
) -> None:  # fmt: skip
    """Predict the quantization ratio that a model of some size can reach inside a budget.

    From the law of size fitted to smaller models of its family, with a 95 % prediction interval.
    """
    from dataclasses import asdict

    from pennyweight.core import RecipeError
    from pennyweight.study.scaling.cells import cells_of
    from pennyweight.study.scaling.design import loss_budget
    from pennyweight.study.scaling.predict import Question, parse_size, predict

    if statistic not in ("best", "mean"):
        raise RecipeError(f"--statistic {statistic}: expected best or mean")
    question = Question(
        size=parse_size(size), budget=loss_budget(budget), format=format, granularity=granularity,
        search=search, statistic=statistic,
    )  # fmt: skip
    found = predict(cells_of(*_records(family, records, study)), question)
    for warning in found.warnings:
        Console(stderr=True, highlight=False).print(f"warning: {warning}", soft_wrap=True)
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=1))
    else:
        _print(found)


def _records(family: Path, records: Path, study: str | None):
    """The records of the study, and where they are."""
    from pennyweight.core import RecipeError
    from pennyweight.records import Store
    from pennyweight.study.scaling.design import load_study

    if family.suffix == ".toml":
        study, family = load_study(family).name, records
    store = Store.existing(family)
    if study is None:
        trials = [r for r in store.find() if "ratio" in r.subject and "search" in r.subject]
        names = list(dict.fromkeys(record.study for record in trials))
        if len(names) > 1:
            raise RecipeError(f"{family}: holds several studies; name one: --study {names[0]}, "
                              f"{', '.join(names[1:])}")  # fmt: skip
        return trials, str(family)
    return store.find(study=study), f"{family}: study {study!r}"


def _print(found: "Prediction") -> None:
    console = Console(highlight=False)
    console.print(
        f"{found.size:.4g} parameters, {found.budget}, {found.format}, {found.granularity}, "
        f"{found.search} ({found.statistic}):"
    )
    console.print(
        f"Q_r {found.ratio:.3f}, {found.confidence:.0%} prediction interval {found.low:.3f} to "
        f"{found.high:.3f}"
    )
    console.print(f"from N = exp({found.k:.4g} (1 - Q_r) {found.c:+.4g}), N in billions, and:")
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("model", "parameters", "reachable Q_r"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for member in found.members:
        more = "at least " if member.at_least else ""
        table.add_row(member.model, f"{member.size:,}", f"{more}{member.ratio:.3f}")
    console.print(table)
