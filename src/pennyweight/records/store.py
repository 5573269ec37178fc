"""Records in a SQLite file: added, never changed, never twice.

Several processes may write to one file: SQLite locks it, and a measurement that two of them made at
the same time is kept once. What a study has not yet measured is what has no key here, which is how
a study that was interrupted continues.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pennyweight.core import CheckpointError
from pennyweight.core.record import Record

VERSION = 1  # of the table; a store of a later version is not touched
WAIT_S = 60.0  # for another process to finish its transaction
JSON_COLUMNS = ("subject", "versions", "detail")
TABLE = """
CREATE TABLE IF NOT EXISTS records (
    id INTEGER PRIMARY KEY,
    study TEXT NOT NULL, key TEXT NOT NULL, subject TEXT NOT NULL, metric TEXT NOT NULL,
    value REAL, lower REAL, upper REAL, confidence REAL,
    plan TEXT NOT NULL, data TEXT NOT NULL, seed INTEGER, versions TEXT NOT NULL,
    machine TEXT NOT NULL, wall_time_s REAL, peak_bytes INTEGER, made_at TEXT NOT NULL,
    detail TEXT NOT NULL,
    UNIQUE (study, key, metric)
)
"""


@dataclass(frozen=True)
class Store:
    """The records in one file. `Store.open` makes it if it is not there."""

    path: Path

    @classmethod
    def open(cls, path: str | Path) -> Store:
        """Raises CheckpointError if the file is not a store, or one of a newer version."""
        store = cls(Path(path))
        if not store.path.parent.is_dir():
            raise CheckpointError(f"{path}: there is no folder {store.path.parent} to keep it in")
        if store.path.is_file() and store.path.stat().st_size:
            with store._connected() as connection:
                made = store._check(connection)
            if made:
                return store
        with store._connected(writes=True) as connection:
            if not store._check(connection):  # another process may have made it just now
                connection.execute(TABLE)
                connection.execute(f"PRAGMA user_version = {VERSION}")
        return store

    def _check(self, connection: sqlite3.Connection) -> bool:
        """Whether the file is a store of ours; False if there is nothing in it yet."""
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            raise CheckpointError(
                f"{self.path}: written by a newer pennyweight (store version {version}, this one "
                f"knows {VERSION}); nothing was changed, update pennyweight to use it"
            )
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        if (version == VERSION) != ("records" in tables) or (tables and version != VERSION):
            raise CheckpointError(f"{self.path}: a SQLite file, but not one with records")
        return version == VERSION

    @classmethod
    def existing(cls, path: str | Path) -> Store:
        """As `open`, of a file that must be there. Raises CheckpointError."""
        if not Path(path).is_file():
            raise CheckpointError(f"{path}: there is no such file; expected a store of records")
        return cls.open(path)

    def add(self, records: Iterable[Record]) -> int:
        """Append; all or none. A record whose study, key and metric are there is left out.

        Returns how many were new. Raises CheckpointError if the file cannot be written.
        """
        names = [f.name for f in fields(Record)]
        places = ", ".join("?" for _ in names)
        query = f"INSERT OR IGNORE INTO records ({', '.join(names)}) VALUES ({places})"
        rows = [_row(record) for record in records]
        with self._connected(writes=True) as connection:
            return connection.executemany(query, rows).rowcount if rows else 0

    def keys(self, study: str) -> frozenset[str]:
        """What a study has measured already."""
        with self._connected() as connection:
            rows = connection.execute("SELECT DISTINCT key FROM records WHERE study = ?", (study,))
            return frozenset(key for (key,) in rows)

    def find(
        self,
        *,
        study: str | None = None,
        metric: str | None = None,
        subject: Mapping[str, Any] | None = None,
    ) -> list[Record]:
        """Records in the order in which they were added. `subject`: entries they must have."""
        asked = {"study": study, "metric": metric}
        wanted = {name: value for name, value in asked.items() if value is not None}
        condition = " AND ".join(f"{name} = ?" for name in wanted) or "1"
        names = ", ".join(f.name for f in fields(Record))
        query = f"SELECT {names} FROM records WHERE {condition} ORDER BY id"
        with self._connected() as connection:
            found = [_record(row) for row in connection.execute(query, tuple(wanted.values()))]
        subject = subject or {}
        return [r for r in found if all(r.subject.get(k) == v for k, v in subject.items())]

    def studies(self) -> dict[str, int]:
        """Name of a study -> number of its records."""
        with self._connected() as connection:
            query = "SELECT study, COUNT(*) FROM records GROUP BY study ORDER BY MIN(id)"
            return dict(connection.execute(query).fetchall())

    @contextmanager
    def _connected(self, *, writes: bool = False) -> Iterator[sqlite3.Connection]:
        """One transaction; SQLite's errors name the file.

        One writer at a time from the start: two may have found the file empty. Readers need no
        permission to write.
        """
        try:
            connection = sqlite3.connect(self.path, timeout=WAIT_S)
            try:
                with connection:
                    connection.execute("BEGIN IMMEDIATE" if writes else "BEGIN")
                    yield connection
            finally:
                connection.close()
        except sqlite3.Error as error:
            raise CheckpointError(f"{self.path}: not a store that can be used: {error}") from None


def _row(record: Record) -> list[Any]:
    values = asdict(record)
    return [
        json.dumps(value, sort_keys=True) if name in JSON_COLUMNS else value
        for name, value in values.items()
    ]


def _record(row: tuple[Any, ...]) -> Record:
    values = dict(zip((f.name for f in fields(Record)), row, strict=True))
    return Record(**values | {name: json.loads(values[name]) for name in JSON_COLUMNS})
