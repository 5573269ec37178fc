"""Fail on source files and functions over the ceiling: 400 lines a file, 60 a function."""

import ast
import sys
from pathlib import Path

FILE_LINES, FUNCTION_LINES = 400, 60


def too_large(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    lines = text.count("\n")
    found = [f"{path}: {lines} lines, ceiling {FILE_LINES}"] if lines > FILE_LINES else []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            size = (node.end_lineno or node.lineno) - node.lineno + 1
            if size > FUNCTION_LINES and not path.is_relative_to("src/pennyweight/cli"):
                found.append(f"{path}:{node.lineno}: {node.name} has {size} lines")
    return found


def main() -> int:
    files = [file for folder in ("src", "tools", "bench") for file in Path(folder).rglob("*.py")]
    found = [line for file in sorted(files) for line in too_large(file)]
    print("\n".join(found), file=sys.stderr)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
