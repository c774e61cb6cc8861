"""A search index of Python source files in one SQLite file: `files` has one row a path, `words` (FTS5) has the text of the same rowid.

Several processes write at the same time; each file is one transaction.
"""

from __future__ import annotations

import io
import keyword
import re
import sqlite3
import token
import tokenize
from collections.abc import Iterator
from contextlib import closing, contextmanager

import attrs

BUSY_S = 30.0
WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
SCHEMA = """
CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, title TEXT NOT NULL, tokens INTEGER NOT NULL, times_written INTEGER NOT NULL) STRICT;
CREATE VIRTUAL TABLE IF NOT EXISTS words USING fts5(path, title, names, prose);
"""
PUT_FILE = """
INSERT INTO files (path, title, tokens, times_written) VALUES (?, ?, ?, 1)
ON CONFLICT (path) DO UPDATE SET title = excluded.title, tokens = excluded.tokens, times_written = times_written + 1
"""
SEARCH = """
SELECT files.path, files.title FROM words JOIN files ON files.rowid = words.rowid
WHERE words MATCH ? ORDER BY bm25(words, 8.0, 8.0, 1.0, 2.0) LIMIT ?
"""


@attrs.frozen
class Document:
    """A file as the index has it: its identifiers, and the words of its comments and strings."""

    path: str
    title: str
    tokens: int
    names: str
    prose: str


# ---- from source to document


def tokenised(path: str, source: bytes) -> Document:
    """The tokens of a Python file; of one that is not valid Python (there are some, to test Python with) the words."""
    names: list[str] = []
    prose: list[str] = []
    title, count = "", 0
    try:
        for found in tokenize.tokenize(io.BytesIO(source).readline):
            count += 1
            if found.type == token.NAME and not keyword.iskeyword(found.string):
                names.append(found.string)
            elif found.type in (token.STRING, token.COMMENT):
                prose += WORD.findall(found.string)
                title = title or (first_line(found.string) if found.type == token.STRING and not names else "")
    except (SyntaxError, tokenize.TokenError, UnicodeDecodeError, ValueError):
        prose = WORD.findall(source.decode("utf-8", "replace"))
        count = len(prose)
    return Document(path, title, count, " ".join(names), " ".join(prose))


def first_line(literal: str) -> str:
    """The first words of a docstring."""
    return next((line.strip() for line in literal.strip("rRbBuU\"'").splitlines() if line.strip()), "")[:80]


# ---- the index


@contextmanager
def opened(file: str) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(file, timeout=BUSY_S, isolation_level=None)) as index:
        yield index


def create(file: str) -> None:
    """An empty index; sqlite3.OperationalError where this Python's SQLite has no FTS5."""
    with opened(file) as index:
        index.execute("PRAGMA journal_mode = WAL")
        index.executescript(SCHEMA)


def put(index: sqlite3.Connection, document: Document) -> None:
    """One row for the path, whether it was there or not: all of it or nothing."""
    index.execute("BEGIN IMMEDIATE")
    with index:
        index.execute(PUT_FILE, (document.path, document.title, document.tokens))
        rowid = index.execute("SELECT rowid FROM files WHERE path = ?", (document.path,)).fetchone()[0]
        index.execute("DELETE FROM words WHERE rowid = ?", (rowid,))
        row = (rowid, document.path, document.title, document.names, document.prose)
        index.execute("INSERT INTO words (rowid, path, title, names, prose) VALUES (?, ?, ?, ?, ?)", row)


def paths(index: sqlite3.Connection) -> list[str]:
    """The path of every document in the index, as often as it is there."""
    return [path for (path,) in index.execute("SELECT path FROM words")]


def written_again(index: sqlite3.Connection) -> int:
    """How many files were written more than once."""
    return int(index.execute("SELECT count(*) FROM files WHERE times_written > 1").fetchone()[0])


def search(index: sqlite3.Connection, query: str, limit: int) -> list[tuple[str, str]]:
    """The best hits: path and title."""
    return list(index.execute(SEARCH, (query, limit)))
