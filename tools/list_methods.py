"""Write docs/methods.md from the docstrings and fields of every registered method, or check it."""

import argparse
import ast
import inspect
import io
import sys
import tokenize
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pennyweight.quantize import QUANTIZERS
from pennyweight.saliency import SALIENCIES
from pennyweight.train import TRAINERS
from pennyweight.transform import TRANSFORMS

PAGE = Path("docs/methods.md")
HEAD = """\
# Methods

Made by `make docs` from the code: what each method does, its options with their defaults, where it
is described, and what differs from its authors' code and why. `pennyweight list quantizers` has the
same in one line each; recipes/ has one recipe to run for each; docs/formats.md the number formats.
"""
CHAPTERS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "Quantizers": ('`quantizer = { name = "gptq", damp = 0.01 }` in a rule.', QUANTIZERS),
    "Transforms": (
        "`[[transform]]` with `name`, `options` and `match`. A block computes the same before and "
        "after; the pipeline proves it on the block, and leaves out a scale that does not lower "
        "the error of the linears that read it.",
        TRANSFORMS,
    ),
    "Trainers": (
        "`[[train]]` with `name`, `options` and `match`. Learned over a whole block after its "
        "rules were carried out, and kept only where that lowers the error of the block's output "
        "on every eighth calibration sample, which with `held_out` is not learned from.",
        TRAINERS,
    ),
    "Saliencies": ('`saliency = "fisher"` among the options of `gwq`.', SALIENCIES),
}


def page() -> str:
    parts = [HEAD]
    for title, (about, table) in CHAPTERS.items():
        parts.append(f"## {title}\n\n{about}\n")
        parts += [entry(name, cls) for name, cls in table.items()]
    return "\n".join(parts)


def entry(name: str, cls: type) -> str:
    module = inspect.getmodule(cls)
    lines = [f"### {name}", "", inspect.cleandoc(cls.__doc__ or ""), ""]
    rest = inspect.cleandoc((module.__doc__ if module else "") or "")
    lines += [rest, ""] if rest else []
    table = [f"| `{key}` | `{value}` | {about} |" for key, value, about in options(cls)]
    if table:
        lines += ["| option | default | |", "| --- | --- | --- |", *table, ""]
    reads = getattr(cls(), "needs", {"the block's samples"})  # some depend on options
    needs = ", ".join(sorted(reads)) or "no data"
    lines += [f"Reads: {needs}. Source: {cls.source}.", ""]  # type: ignore[attr-defined]
    return "\n".join(lines)


def options(cls: type) -> Iterator[tuple[str, str, str]]:
    """Name, default and trailing comment of each field that a recipe can set."""
    source = inspect.cleandoc(inspect.getsource(cls))
    remarks = comments(source)
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    for node in body.body:
        if isinstance(node, ast.AnnAssign) and "ClassVar" not in ast.unparse(node.annotation):
            assert isinstance(node.target, ast.Name) and node.value is not None
            end = node.end_lineno or node.lineno
            said = " ".join(remarks.get(line, "") for line in range(node.lineno, end + 1))
            yield node.target.id, ast.unparse(node.value), " ".join(said.split())


def comments(source: str) -> dict[int, str]:
    """Line -> its comment."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {
        token.start[0]: token.string.removeprefix("#").strip()
        for token in tokens
        if token.type == tokenize.COMMENT
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if they differ")
    text = page()
    if not parser.parse_args().check:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
        print(f"{PAGE} is not what the code says; run `make docs`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
