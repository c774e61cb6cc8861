"""Pages: thousands of rows out of SQLite in one step of a statement.

Each step hands the GIL over, and beside a busy event loop it takes up to a switch interval to come back: row by row, a page of 20,000 would take
seconds.  So a page is one row of columns: the numbers of all rows as one text, their blobs and texts as one blob with a text of their sizes
(-1: NULL).  Rows over LARGE_BYTES are few, and are read as they are; else a page could become larger than a value of SQLite may be.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

from taskq.storage.base import COLUMNS, Row
from taskq.storage.seal import BrokenSeal

LARGE_BYTES = 8_192
NUMBERS = ("seq", "state", "priority", "position", "due_ms", "finished_ms")
TEXTS = ("queue", "task_type", "key")
BLOBS = ("id", "payload", "result", "meta")

_BYTES = "length(payload) + length(result) + length(meta) + coalesce(length(key), 0)"


def _aggregates() -> Iterator[str]:
    small = "FILTER (WHERE small)"
    for name in NUMBERS:
        yield f"group_concat({name}) {small}"
    for name in (*TEXTS, *BLOBS):
        yield f"group_concat(coalesce(length(CAST({name} AS BLOB)), -1)) {small}, CAST(group_concat({name}, '') {small} AS BLOB)"
    yield "group_concat(seq) FILTER (WHERE NOT small)"


def page(where: str) -> str:
    """The statement for a page of the table tasks: `where` is all that stands behind the table's name, with the order and the limit."""
    return f"SELECT {', '.join(_aggregates())} FROM (SELECT *, {_BYTES} <= {LARGE_BYTES} AS small FROM tasks {where})"


def read_page(connection: sqlite3.Connection, statement: str, arguments: Sequence[Any]) -> Iterator[Row]:
    """The rows of the page, in no order that is promised, with their seals, large ones one by one.  Raises BrokenSeal if they are not even rows."""
    *columns, large = connection.execute(statement, arguments).fetchone()
    try:
        rows = [] if columns[0] is None else _rows(columns)
    except (ValueError, TypeError):
        raise BrokenSeal("a row of table tasks is not as it was written") from None
    yield from rows
    for seq in [] if large is None else _numbers(large):
        yield from connection.execute(f"SELECT {', '.join(COLUMNS)} FROM tasks WHERE seq = ?", (seq,))


def _rows(columns: Sequence[Any]) -> list[Row]:
    found: dict[str, Sequence[Any]] = {name: _numbers(text) for name, text in zip(NUMBERS, columns, strict=False)}
    pairs = iter(columns[len(NUMBERS) :])
    found.update({name: _texts(_numbers(next(pairs)), next(pairs)) for name in TEXTS})
    found.update({name: _cut(_numbers(next(pairs)), next(pairs)) for name in BLOBS})
    return list(zip(*(found[name] for name in COLUMNS), strict=True))


def _numbers(text: str) -> list[int]:
    return list(map(int, text.split(",")))


def _cut(sizes: Sequence[int], joined: bytes | None) -> list[bytes]:
    body = joined or b""
    ends = list(accumulate(sizes))
    return [body[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def _texts(sizes: list[int], joined: bytes | None) -> list[str | None]:
    texts = _cut([max(0, size) for size in sizes], joined)
    known: dict[bytes, str] = {}
    return [None if size < 0 else known.get(text) or known.setdefault(text, text.decode()) for size, text in zip(sizes, texts, strict=True)]
