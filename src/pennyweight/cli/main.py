"""The command line: verbs, and one place where errors become one line.

What is imported here is light. Verbs import torch and transformers when they run, so that help and
wrong usage answer at once.
"""

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from pennyweight import __version__
from pennyweight.cli.check import check_command
from pennyweight.cli.costs import costs_command
from pennyweight.cli.demo import demo_command
from pennyweight.cli.diagnose import diagnose_command
from pennyweight.cli.eval import eval_command
from pennyweight.cli.export import export_command
from pennyweight.cli.inject import inject_command
from pennyweight.cli.list import list_command
from pennyweight.cli.plan import plan_command
from pennyweight.cli.predict import predict_command
from pennyweight.cli.profile import profile_command
from pennyweight.cli.prove import prove_command
from pennyweight.cli.quantize import quantize_command
from pennyweight.cli.records import records_command
from pennyweight.cli.report import report_command
from pennyweight.cli.sense import sense_command
from pennyweight.cli.study import study_app

if TYPE_CHECKING:
    from pennyweight.core import PennyweightError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command("quantize")(quantize_command)
app.command("check")(check_command)
app.command("plan")(plan_command)
app.command("sense")(sense_command)
app.command("costs")(costs_command)
app.command("eval")(eval_command)
app.command("profile")(profile_command)
app.command("diagnose")(diagnose_command)
app.add_typer(study_app, name="study")
app.command("predict")(predict_command)
app.command("report")(report_command)
app.command("records")(records_command)
app.command("export")(export_command)
app.command("prove")(prove_command)
app.command("inject-outliers")(inject_command)
app.command("list")(list_command)
app.command("demo")(demo_command)


def _show_version(asked: bool) -> bool:
    if asked:
        typer.echo(f"pennyweight {__version__}")
        raise typer.Exit
    return asked


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Say which this is."),
    ] = False,
) -> None:
    """Make language models cheap to run without making them worse."""


def main() -> None:
    """Exit 0 done, 1 an error the user can mend, 2 wrong usage, 130 interrupted."""
    os.environ.setdefault(
        "TRANSFORMERS_VERBOSITY", "error"
    )  # its remarks are about its own loading
    try:
        app()
    except SystemExit:
        raise  # here, because the last clause would import torch to compare with
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted; repeat the command to continue where it was")
        sys.exit(130)
    except _user_error() as error:
        Console(stderr=True, highlight=False).print(
            f"[bold red]error:[/] {_plain(str(error))}", soft_wrap=True
        )
        sys.exit(1)


def _user_error() -> "type[PennyweightError]":
    """Python asks for it only when something was raised."""
    from pennyweight.core import PennyweightError

    return PennyweightError


def _plain(text: str) -> str:
    """One line that rich shows as it is; names in files may hold line ends and terminal codes."""
    line = " ".join(text.split())
    return escape("".join(c if c.isprintable() else ascii(c)[1:-1] for c in line))
