"""Records as CSV, JSON or Parquet, for tools that draw and count."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from pennyweight.core.errors import DataError, UnsupportedError
from pennyweight.core.record import Record
from pennyweight.model.writer import replace_file, write_text

SUFFIXES = (".csv", ".json", ".parquet")
NESTED = ("subject", "versions", "detail")  # JSON texts in a table


def export_records(records: Sequence[Record], path: Path) -> None:
    """Write all fields of all records, in the order given; the suffix is the format.

    Raises DataError for another suffix, UnsupportedError if Parquet's library is not installed.
    """
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path}: expected a name that ends in {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise DataError(f"{path}: there is no folder {path.parent}; make it first")
    if path.suffix == ".json":
        write_text(path, json_text(records) + "\n")
    elif path.suffix == ".csv":
        write_text(path, _csv(records))
    else:
        _write_parquet(records, path)


def json_text(records: Sequence[Record]) -> str:
    """A list of objects with the fields of a Record."""
    return json.dumps([asdict(record) for record in records], indent=2)


def _flat(record: Record) -> dict[str, Any]:
    values = asdict(record)
    return values | {name: json.dumps(values[name], sort_keys=True) for name in NESTED}


def _csv(records: Sequence[Record]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Record)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(_flat(record) for record in records)
    return text.getvalue()


def _write_parquet(records: Sequence[Record], path: Path) -> None:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UnsupportedError(
            f"{path}: Parquet needs pyarrow; install it with pip install 'pennyweight[tasks]', or "
            "export to .csv or .json"
        ) from None
    kinds = {
        "value": pyarrow.float64(), "lower": pyarrow.float64(), "upper": pyarrow.float64(),
        "confidence": pyarrow.float64(), "wall_time_s": pyarrow.float64(),
        "seed": pyarrow.int64(), "peak_bytes": pyarrow.int64(),
    }  # fmt: skip
    # A schema of its own: a column that is empty in all records would have no type.
    schema = pyarrow.schema(
        [(field.name, kinds.get(field.name, pyarrow.string())) for field in fields(Record)]
    )
    table = pyarrow.Table.from_pylist([_flat(record) for record in records], schema=schema)
    temporary = path.with_name(f".{path.name}.partial")
    pyarrow.parquet.write_table(table, temporary)
    replace_file(temporary, path)
