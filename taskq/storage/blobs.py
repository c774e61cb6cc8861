"""Huge blobs in SQLite: a row is inserted with room for them, and they are written into it where it lies.

A blob that is bound is copied by sqlite3, and once more by SQLite when it makes the row, and a statement that is kept for the next time keeps what
was bound to it.  Room that stands at the end of a row is made without any memory, so a huge row costs none beside the page cache.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

HUGE_BYTES = 64 << 10
PIECE_BYTES = 1 << 20


def insert_huge(
    connection: sqlite3.Connection, table: str, statement: str, values: Sequence[Any], last: Sequence[str], row: int | None = None
) -> None:
    """Run this insert of one row whose last columns, blobs all, have these names.  `row`: its rowid, None if it gets a new one."""
    first, blobs = values[: -len(last)], values[-len(last) :]
    marks = ", ".join("?" * len(values))
    assert statement.count(f"({marks})") == 1
    room = ", ".join(["?"] * len(first) + ["zeroblob(?)"] * len(blobs))
    cursor = connection.execute(statement.replace(f"({marks})", f"({room})"), [*first, *map(len, blobs)])
    row = cursor.lastrowid if row is None else row
    assert row is not None
    for name, blob in zip(last, blobs, strict=True):
        if len(blob):
            _write(connection, table, name, row, memoryview(blob))


def _write(connection: sqlite3.Connection, table: str, column: str, row: int, content: memoryview) -> None:
    with connection.blobopen(table, column, row) as blob:
        for at in range(0, len(content), PIECE_BYTES):
            blob.write(content[at : at + PIECE_BYTES])
