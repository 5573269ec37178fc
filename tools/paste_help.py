"""Paste the help text of every verb into docs/cli.md, or check that it is what the CLI prints."""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import typer

from pennyweight.cli.main import app

PAGE = Path("docs/cli.md")
PLAIN = os.environ | {"TERM": "dumb", "COLUMNS": "100", "NO_COLOR": "1"}


def verbs() -> Iterator[str]:
    """In the order in which `--help` lists them; the verbs of `study` by both words."""
    top = typer.main.get_command(app)
    assert isinstance(top, typer.core.TyperGroup)
    for name, command in top.commands.items():
        if isinstance(command, typer.core.TyperGroup):
            yield from (f"{name} {inner}" for inner in command.commands)
        else:
            yield name


def help_text(verb: str) -> str:
    command = [sys.executable, "-m", "pennyweight", *verb.split(), "--help"]
    out = subprocess.run(command, env=PLAIN, capture_output=True, text=True, check=True).stdout
    return "\n".join(line.rstrip() for line in out.strip().splitlines())


def page() -> str:
    parts = ["# Commands\n\nMade by `make docs` from what `--help` prints.\n"]
    parts += [f"## pennyweight {verb}\n\n```text\n{help_text(verb)}\n```\n" for verb in verbs()]
    return "\n".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if they differ")
    text = page()
    if not parser.parse_args().check:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
        print(f"{PAGE} is not what the commands print; run `make docs`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
