"""Whether an SQLite file is sound: its own check of pages and indexes, and which of its errors mean damage."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

from taskq.storage.seal import BrokenSeal

BUSY_SECONDS_MAX = 5.0
CHECK_STEPS = 100_000  # of SQLite's machine, between two looks at whether a check is still wanted


def pages_damage(connection: sqlite3.Connection, what: str) -> list[str]:
    return [" ".join(answer.split()) for (answer,) in connection.execute(f"PRAGMA integrity_check({what})") if answer != "ok"]


def integrity_check(path: Path, ended: threading.Event | None = None) -> list[str]:
    """What SQLite finds wrong in the file, nothing if it is sound, or if `ended` was set meanwhile.  Blocks, reads everything through a
    read-only connection of its own, and takes one table at a time, since a long read keeps the WAL from being reset."""
    connection = reader_of(path)
    if ended is not None:
        connection.set_progress_handler(ended.is_set, CHECK_STEPS)
    try:
        return [answer for table in ("meta", "counts", "tasks", "finished") for answer in pages_damage(connection, f"'{table}'")]
    except sqlite3.DatabaseError as error:
        if ended is not None and ended.is_set():
            return []
        if not is_damage(error):
            raise
        return [str(error)]
    finally:
        connection.close()


def reader_of(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_SECONDS_MAX)


def is_damage(error: Exception) -> bool:
    """A text that is none is found by Python's module, which gives it no code."""
    codes = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
    return isinstance(error, BrokenSeal) or getattr(error, "sqlite_errorcode", 0) & 0xFF in codes or "decode to UTF-8" in str(error)
