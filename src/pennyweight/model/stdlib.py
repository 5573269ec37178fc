"""Python's own standard library as text: what `pylm` learned from and what it is measured on.

Every Python installation carries this text, so calibration and evaluation need no download. The
three splits are disjoint by module: `train` is also the default calibration text, `heldout` is
never trained on, and `extra` is library code that some distributions leave out (`tkinter`,
`idlelib`, ...), so nothing but the training of `pylm` may depend on it. Tests are in no split:
they are another kind of text, and they quote what they test.
"""

import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pennyweight.core.errors import DataError

# fmt: off
HELDOUT = frozenset({
    "argparse", "base64", "bisect", "calendar", "configparser", "contextlib", "copy", "csv",
    "dataclasses", "fnmatch", "fractions", "glob", "graphlib", "heapq", "json", "pprint", "queue",
    "reprlib", "sched", "shlex", "statistics", "string", "tempfile", "textwrap", "timeit",
    "tomllib",
})
"""Top-level modules and packages kept out of training; all exist in every Python from 3.11 on."""

OPTIONAL = frozenset({
    "distutils", "ensurepip", "idlelib", "lib2to3", "tkinter", "turtledemo",
})
"""Packages that some distributions ship separately or not at all."""

# Tables and generated files: they are data with Python syntax, and say nothing about code.
DATA = frozenset({
    "encodings", "html.entities", "locale", "pydoc_data", "sitecustomize", "_distutils_system_mod",
})
DATA_PREFIXES = ("_sysconfigdata", "config-")
SKIPPED_FOLDERS = frozenset({
    "__pycache__", "site-packages", "dist-packages", "lib-dynload", "data", "crashers",
})
TEST_FOLDERS = frozenset({"test", "tests", "idle_test"})
# fmt: on


def stdlib_documents(split: Literal["train", "heldout", "extra"]) -> list[tuple[str, str]]:
    """The modules of one split as sorted pairs of dotted module path and source text.

    Raises DataError if this Python has no library source (a zipped or frozen build).
    """
    root = stdlib_folder()
    documents = []
    for path in _source_files(root):
        name = module_path(path.relative_to(root))
        if split_of(name) == split and (text := _read(path)):
            documents.append((name, text))
    return sorted(documents)


def stdlib_folder() -> Path:
    """The folder of the standard library's source files."""
    root = Path(sysconfig.get_paths()["stdlib"])
    if not (root / "argparse.py").is_file():
        raise DataError(
            f"{root}: expected the source of Python's standard library (argparse.py), found none; "
            "use a Python whose library is not zipped or frozen, or give your own text"
        )
    return root


def split_of(name: str) -> Literal["train", "heldout", "extra"] | None:
    """Which split a dotted module path belongs to; None for data and tests."""
    parts = name.split(".")
    if name in DATA or parts[0] in DATA or parts[0].startswith(DATA_PREFIXES):
        return None
    if TEST_FOLDERS.intersection(parts):
        return None
    if parts[0] in OPTIONAL:
        return "extra"
    return "heldout" if parts[0] in HELDOUT else "train"


def module_path(relative: Path) -> str:
    """`json/__init__.py` -> `json`, `email/mime/base.py` -> `email.mime.base`."""
    parts = relative.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def _source_files(root: Path) -> Iterator[Path]:
    for path in sorted(root.iterdir()):
        if path.is_dir() and path.name not in SKIPPED_FOLDERS:
            yield from _source_files(path)
        elif path.suffix == ".py" and path.is_file():
            yield path


def _read(path: Path) -> str | None:
    """The text of a file, None if it is not UTF-8 (a few test files are not, on purpose)."""
    try:
        return path.read_bytes().decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError:
        return None
