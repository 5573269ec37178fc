"""`pennyweight records`: list, filter and export what was measured."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from pennyweight.core.record import Record


def records_command(
    file: Annotated[Path, typer.Argument(help="A store, as `eval --records` and studies make.")],
    study: Annotated[str | None, typer.Option(help="Only of this study.")] = None,
    metric: Annotated[str | None, typer.Option(help="Only of this metric, as kl_nats.")] = None,
    model: Annotated[str | None, typer.Option(help="Only of this model, as it was named.")] = None,
    export: Annotated[
        Path | None, typer.Option(help="Write them to a .csv, .json or .parquet file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and not a table.")] = False,
) -> None:
    """List measured results with their intervals; --export writes all that is known of them."""
    from pennyweight.records import Store
    from pennyweight.records.export import export_records, json_text

    store = Store.existing(file)
    found = store.find(study=study, metric=metric, subject={"model": model} if model else None)
    if export is not None:
        export_records(found, export)
        Console(stderr=True).print(f"{len(found)} records written to {export}", highlight=False)
    elif as_json:
        typer.echo(json_text(found))
    else:
        Console().print(_table(found))
        if not found:
            studies = ", ".join(f"{name} ({count})" for name, count in store.studies().items())
            Console(stderr=True).print(f"none of these; studies: {studies or 'none'}", markup=False)


def _table(records: "list[Record]") -> Table:
    table = Table("study", "subject", "metric", "value", "interval", "made at")
    for record in records:
        known = record.lower is not None and record.upper is not None
        table.add_row(
            record.study, _subject(record), record.metric, f"{record.value:.6g}",
            f"{record.lower:.6g} to {record.upper:.6g}" if known else "", record.made_at[:16],
        )  # fmt: skip
    return table


def _subject(record: "Record") -> str:
    """What a reader tells records apart by; --export and --json have the rest."""
    shown = ("model", "against", "task", "scheme", "unit")
    words = [str(record.subject[name]) for name in shown if record.subject.get(name)]
    words += [kind for kind in [record.subject.get("dtype")] if kind not in (None, "float32")]
    return " ".join(words) or record.key
