"""The command line: verbs, and one place where errors become one line."""

import os
import sys

import typer
from rich.console import Console
from rich.markup import escape

from pennyweight.cli.check import check_command
from pennyweight.cli.demo import demo_command
from pennyweight.cli.eval import eval_command
from pennyweight.cli.export import export_command
from pennyweight.cli.list import list_command
from pennyweight.cli.prove import prove_command
from pennyweight.cli.quantize import quantize_command
from pennyweight.core.errors import PennyweightError

app = typer.Typer(
    help="Make language models cheap to run without making them worse.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command("quantize")(quantize_command)
app.command("check")(check_command)
app.command("eval")(eval_command)
app.command("export")(export_command)
app.command("prove")(prove_command)
app.command("list")(list_command)
app.command("demo")(demo_command)


def main() -> None:
    """Exit 0 done, 1 an error the user can mend, 2 wrong usage, 130 interrupted."""
    os.environ.setdefault(
        "TRANSFORMERS_VERBOSITY", "error"
    )  # its remarks are about its own loading
    try:
        app()
    except PennyweightError as error:
        Console(stderr=True, highlight=False).print(
            f"[bold red]error:[/] {_plain(str(error))}", soft_wrap=True
        )
        sys.exit(1)
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted; repeat the command to continue where it was")
        sys.exit(130)


def _plain(text: str) -> str:
    """One line that rich shows as it is; names in files may hold line ends and terminal codes."""
    line = " ".join(text.split())
    return escape("".join(c if c.isprintable() else ascii(c)[1:-1] for c in line))
