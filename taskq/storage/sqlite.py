"""SqliteStore: the default engine, one SQLite file in WAL mode behind aiosqlite.

Rules.  Exactly one read-write connection, which alone checkpoints (two at once can corrupt the WAL in the SQLite versions most systems have).
A transaction is one plain function that runs in the connection's thread in one hop: nothing can interleave with it or cancel it half-way.
Rows travel in multi-row statements, never by `executemany`: each step of a statement hands the GIL over, and beside a busy event loop it
takes milliseconds to come back.  COMMIT returns when the transaction survives power loss (synchronous=FULL).  A finished row is never
searched by most of its columns, and binding values is most of what a row costs, so it is a few columns and one packed `body`.  Every row has
a seal (seal.py), which is looked at whenever the row is read.  Damage is StoreCorrupt, and the files are let go of as they are: an ordinary
close would bring the log into the main file.  This file knows SQL and nothing about tasks beyond the columns and the meaning of two states,
pending (2) and failed (6).
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from functools import cache
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite
import msgpack

from taskq.errors import StartError, StoreCorrupt
from taskq.ids import ms_of_id
from taskq.storage.base import AHEAD_ID_MS, COLUMNS, PRUNED_ID_MS, Capabilities, Count, Pruned, Retention, Row, WriteBatch
from taskq.storage.blobs import insert_huge
from taskq.storage.chunks import chunks, runs
from taskq.storage.counts import Changes, check_counts, count_all, read_counts
from taskq.storage.folder import open_own
from taskq.storage.integrity import BUSY_SECONDS_MAX, is_damage, pages_damage, reader_of
from taskq.storage.metas import with_texts
from taskq.storage.pages import page, read_page
from taskq.storage.schema import APPLICATION_ID, FORMAT, SCHEMA, UPGRADES
from taskq.storage.seal import BrokenSeal, Pack, seal_of_finished, seal_of_live, seal_of_number, unsealed_finished, unsealed_live
from taskq.storage.texts import without_texts

T = TypeVar("T")

PENDING = 2
MANY = (0, PENDING, 4)  # the states of tasks that wait: there may be millions, which are read by line and by due time
SEQ, POSITION, DUE_MS = (COLUMNS.index(name) for name in ("seq", "position", "due_ms"))
INSIDE_BYTES_MAX = 8_192  # of a finished payload and its result: to copy as much costs less than to bind two more values
CHECK_BYTES_MAX = 32 * 1024 * 1024  # of a store that is looked at as a whole before it is used; a larger one is checked beside the work

# each is set and then read back, since SQLite ignores what it does not know without an error
PRAGMAS: dict[str, tuple[int | str, int | str]] = {
    "journal_mode": ("WAL", "wal"),
    "synchronous": ("FULL", 2),
    "secure_delete": ("OFF", 0),
    "journal_size_limit": (64 * 1024 * 1024, 64 * 1024 * 1024),
    "wal_autocheckpoint": (4000, 4000),
    "cache_size": (-16384, -16384),
    "temp_store": ("MEMORY", 2),
}

# the columns of a finished row; an insert names the first three, or five if a row of it has a key, or all if one is large
FINISHED = ("id", "finished_ms", "body", "queue", "key", "payload", "result")
BARE, KEYED, LARGE = 3, 5, 7
# the last columns of both tables, which a huge row is given piece by piece
HUGE_LIVE, HUGE_FINISHED = ("payload", "result", "meta"), ("payload", "result")
READ = {"tasks": ("rowid", *COLUMNS), "finished": ("place", "id", "finished_ms", "body", "payload", "result")}

_LIST = ", ".join(COLUMNS)
_ROW = f"({', '.join('?' * len(COLUMNS))})"
_UPSERT = f"ON CONFLICT (seq) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in COLUMNS[1:])}"

LOAD_MANY = f"SELECT {_LIST} FROM tasks NOT INDEXED WHERE state = ? AND seq > ? ORDER BY seq LIMIT ?"
LOAD_FEW = f"SELECT {_LIST} FROM tasks INDEXED BY tasks_state WHERE state NOT IN (0, 2, 4) AND state = ? AND seq > ? ORDER BY seq LIMIT ?"
_LINE = "queue = ? AND priority = ? AND task_type = ? AND position > ? ORDER BY position, seq LIMIT ?"
LINE_PENDING = page(f"INDEXED BY tasks_line WHERE state = 2 AND +state = ? AND {_LINE}")
LINE_OTHER = page(f"NOT INDEXED WHERE state = ? AND {_LINE}")
DUE_THEN = page("INDEXED BY tasks_due WHERE state IN (0, 4) AND due_ms = ? AND seq > ? ORDER BY seq LIMIT ?")
DUE_LATER = page("INDEXED BY tasks_due WHERE state IN (0, 4) AND due_ms > ? ORDER BY due_ms, seq LIMIT ?")
GET_META = "SELECT name, value, seal FROM meta"

FINISHED_BOUNDS = "SELECT (SELECT min(place) FROM finished), (SELECT max(place) FROM finished)"
FIRST_YOUNG = "SELECT place FROM finished WHERE place BETWEEN ? AND ? AND finished_ms >= ? ORDER BY place LIMIT 1"
OLD_FINISHED_IDS = "SELECT max(iif(id <= ?, id, NULL)), max(id) FROM finished WHERE place <= ?"
DELETE_FINISHED = "DELETE FROM finished WHERE place <= ?"
_OLD_FAILED = "FROM tasks WHERE state = 6 AND finished_ms < ? ORDER BY finished_ms, seq LIMIT ?"
OLD_FAILED_IDS = f"SELECT max(iif(id <= ?, id, NULL)), max(id) FROM (SELECT id {_OLD_FAILED})"
OLD_FAILED_QUEUES = f"SELECT queue, count(*) FROM (SELECT queue {_OLD_FAILED}) GROUP BY queue ORDER BY queue"
OLD_FAILED_SEQS = f"SELECT seq {_OLD_FAILED}"
DELETE_FAILED = f"DELETE FROM tasks WHERE seq IN (SELECT seq {_OLD_FAILED})"


# ---- statements over many rows --------------------------------------------------------------------------------------------------------


@cache
def _insert_tasks(rows: int) -> str:
    return f"INSERT INTO tasks ({_LIST}) VALUES {', '.join([_ROW] * rows)} {_UPSERT}"


@cache
def _upsert_meta(rows: int) -> str:
    values = ", ".join(["(?, ?, ?)"] * rows)
    return f"INSERT INTO meta VALUES {values} ON CONFLICT (name) DO UPDATE SET value = excluded.value, seal = excluded.seal"


@cache
def _insert_finished(width: int, rows: int) -> str:
    row = f"({', '.join('?' * width)})"
    return f"INSERT INTO finished ({', '.join(FINISHED[:width])}) VALUES {', '.join([row] * rows)}"


@cache
def _delete_tasks(rows: int) -> str:
    return f"DELETE FROM tasks WHERE seq IN ({', '.join('?' * rows)})"


@cache
def _find_ids(table: str, rows: int) -> str:
    return f"SELECT {', '.join(READ[table])} FROM {table} WHERE id IN ({', '.join('?' * rows)})"


@cache
def _find_keys(table: str, rows: int) -> str:
    wanted = f"WITH wanted (queue, key) AS (VALUES {', '.join(['(?, ?)'] * rows)})"
    columns = ", ".join(f"t.{name}" for name in READ[table])
    return f"{wanted} SELECT {columns} FROM wanted CROSS JOIN {table} t ON t.queue = wanted.queue AND t.key = wanted.key AND t.key IS NOT NULL"


# ---- rows as they are bound and read -----------------------------------------------------------------------------------------------------


def _bind_finished(rows: Sequence[Row], pack: Pack) -> tuple[int, list[Any]]:
    """The width of the narrowest insert that holds all these rows, and its values.  Blobs that are small enough to be copied become
    bytearrays: sqlite3 looks for an adapter for each bytes and each None, which costs more than the rest of binding it."""
    width = BARE
    bound: list[tuple[Any, ...]] = []
    for seq, id_, queue, task_type, state, priority, position, due_ms, finished_ms, key, payload, result, meta in rows:
        outside: tuple[Any, Any] = (None, None)
        if large := len(payload) + len(result) > INSIDE_BYTES_MAX:
            outside, payload, result = (payload, result), None, None
        body = pack((seq, queue, task_type, state, priority, position, due_ms, key, payload, result, meta))
        sealed = bytearray(body)
        sealed += seal_of_finished(id_, finished_ms, body, *outside)
        values: tuple[Any, ...] = (bytearray(id_), finished_ms, sealed)
        if large or key is not None:
            width = LARGE if large else max(width, KEYED)
            values += (None if key is None else queue, key, *outside)
        bound.append(values)
    if width > BARE:
        bound = [(*values, None, None, None, None)[:width] for values in bound]
    return width, list(chain.from_iterable(bound))


def _bind_live(row: Row, pack: Pack) -> list[Any]:
    sealed = bytearray(row[12])
    sealed += seal_of_live(row, pack)
    return [*map(_bound, row[:12]), sealed]


def _bound(value: Any) -> Any:
    """The value of a live row as it is bound, small blobs as bytearrays as above."""
    return bytearray(value) if type(value) is bytes and len(value) <= INSIDE_BYTES_MAX else value


def finished_row(id_: bytes, finished_ms: int, body: bytes, payload_column: bytes | None, result_column: bytes | None) -> Row:
    """The row that these columns of a finished one make."""
    bare = unsealed_finished(id_, finished_ms, body, payload_column, result_column)
    seq, queue, task_type, state, priority, position, due_ms, key, payload, result, meta = msgpack.unpackb(bare)
    if payload is None:
        payload, result = payload_column, result_column
    return (seq, id_, queue, task_type, state, priority, position, due_ms, finished_ms, key, payload, result, meta)


# ---- transactions: plain functions that run in the connection's thread -------------------------------------------------------------------


def _transact(connection: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
    connection.execute("BEGIN IMMEDIATE")
    try:
        result = work(connection)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return result


def _apply(connection: sqlite3.Connection, batch: WriteBatch, pack: Pack) -> None:
    execute = connection.execute
    changes = Changes(connection)
    for rows, huge in runs(sorted(batch.put, key=itemgetter(0))):
        changes.come(rows)
        rows = with_texts(connection, rows, batch)
        values = [value for row in rows for value in _bind_live(row, pack)]
        if huge:
            insert_huge(connection, "tasks", _insert_tasks(1), values, HUGE_LIVE, rows[0][0])
        else:
            execute(_insert_tasks(len(rows)), values)
    for rows, huge in runs(batch.finish):
        rows = with_texts(connection, rows, batch)
        width, values = _bind_finished(rows, pack)
        if huge:
            insert_huge(connection, "finished", _insert_finished(width, 1), values, HUGE_FINISHED)
        else:
            execute(_insert_finished(width, len(rows)), values)
    for seqs in chunks(sorted(batch.delete)):
        changes.go(seqs)
        execute(_delete_tasks(len(seqs)), seqs)
    changes.write()
    for numbers in chunks(list(batch.meta.items())):
        _set_meta(connection, numbers)


def _set_meta(connection: sqlite3.Connection, numbers: Sequence[tuple[str, int]]) -> None:
    if not numbers:
        return
    connection.execute(_upsert_meta(len(numbers)), [value for number in numbers for value in (*number, seal_of_number(*number))])


def _get_meta(connection: sqlite3.Connection) -> dict[str, int]:
    rows = connection.execute(GET_META).fetchall()
    for name, value, seal in rows:
        if seal_of_number(name, value) != seal:
            raise BrokenSeal(f"row {name!r} of table meta is not as it was written")
    return {name: value for name, value, _ in rows}


def _prune(connection: sqlite3.Connection, retention: Retention) -> Pruned:
    last = _last_old(connection, retention)
    old_failed = (retention.failed_before_ms, retention.rows_max)
    marks = _id_marks(connection, last, retention, old_failed)
    failed = tuple(connection.execute(OLD_FAILED_QUEUES, old_failed).fetchall())
    changes = Changes(connection)
    changes.go([seq for (seq,) in connection.execute(OLD_FAILED_SEQS, old_failed).fetchall()] if failed else [])
    changes.write()
    rows = connection.execute(DELETE_FINISHED, (last,)).rowcount + connection.execute(DELETE_FAILED, old_failed).rowcount
    if rows:
        meta = _get_meta(connection)
        _set_meta(connection, [(name, max(ms, meta.get(name, 0))) for name, ms in marks.items() if ms])
    return Pruned(rows, marks[PRUNED_ID_MS], failed, marks[AHEAD_ID_MS])


def _id_marks(connection: sqlite3.Connection, last: int, retention: Retention, old_failed: tuple[int, int]) -> dict[str, int]:
    """The highest id times of what is to be deleted: of ids that are not ahead, and of those that are."""
    until = retention.ids_until_ms.to_bytes(6, "big") + b"\xff" * 10
    pairs = [connection.execute(OLD_FINISHED_IDS, (until, last)).fetchone(), connection.execute(OLD_FAILED_IDS, (until, *old_failed)).fetchone()]
    timely, newest = (max((ms_of_id(id_) for id_ in ids if id_ is not None), default=0) for ids in zip(*pairs, strict=True))
    return {PRUNED_ID_MS: timely, AHEAD_ID_MS: newest if newest > retention.ids_until_ms else 0}


def _last_old(connection: sqlite3.Connection, retention: Retention) -> int:
    """The place up to which finished rows are deleted; places have no gaps, so their difference is a count."""
    first, newest = connection.execute(FINISHED_BOUNDS).fetchone()
    if first is None:
        return 0
    end = min(newest, first + retention.rows_max - 1)
    young = connection.execute(FIRST_YOUNG, (first, end, retention.finished_before_ms)).fetchone()
    expired = young[0] - 1 if young else end
    return int(min(end, max(expired, newest - retention.finished_rows_max)))


def _load(connection: sqlite3.Connection, pack: Pack, states: Sequence[int], after_seq: int, limit: int) -> list[Row]:
    rows: list[Row] = []
    for state in set(states):
        rows += connection.execute(LOAD_MANY if state in MANY else LOAD_FEW, (state, after_seq, limit))
    rows.sort(key=itemgetter(0))
    return [unsealed_live(row, pack) for row in rows[:limit]]


def _line(connection: sqlite3.Connection, pack: Pack, state: int, wanted: Sequence[Any]) -> list[Row]:
    statement = LINE_PENDING if state == PENDING else LINE_OTHER
    rows = [without_texts(unsealed_live(row, pack)) for row in read_page(connection, statement, (state, *wanted))]
    rows.sort(key=itemgetter(POSITION, SEQ))
    return rows


def _due(connection: sqlite3.Connection, pack: Pack, after_ms: int, after_seq: int, limit: int) -> list[Row]:
    """In two steps, since SQLite does not look up a pair in an index whose second part is the rowid."""

    def read(statement: str, *arguments: int) -> list[Row]:
        return [without_texts(unsealed_live(row, pack)) for row in read_page(connection, statement, arguments)]

    rows = read(DUE_THEN, after_ms, after_seq, limit)
    if len(rows) < limit:
        rows += read(DUE_LATER, after_ms, limit - len(rows))
    rows.sort(key=itemgetter(DUE_MS, SEQ))
    return rows


def _find(connection: sqlite3.Connection, pack: Pack, ids: Sequence[bytes], keys: Sequence[tuple[str, str]]) -> list[Row]:
    found: list[Row] = []
    for table in ("tasks", "finished"):
        rows: dict[int, Row] = {}
        for some_ids in chunks(ids):
            rows.update((row[0], row) for row in connection.execute(_find_ids(table, len(some_ids)), some_ids))
        for some_keys in chunks(keys):
            rows.update((row[0], row) for row in connection.execute(_find_keys(table, len(some_keys)), list(chain.from_iterable(some_keys))))
        ordered = [rows[place][1:] for place in sorted(rows)]
        found += [finished_row(*values) if table == "finished" else unsealed_live(values, pack) for values in ordered]
    return found


def _newest_id(connection: sqlite3.Connection, until: bytes) -> bytes:
    found = (connection.execute(f"SELECT max(id) FROM {table} WHERE id <= ?", (until,)).fetchone()[0] for table in ("tasks", "finished"))
    return max(bytes(task_id or b"") for task_id in found)


def _ids_after(connection: sqlite3.Connection, after: bytes, limit: int) -> list[bytes]:
    query = "SELECT id FROM tasks WHERE id > ?1 UNION ALL SELECT id FROM finished WHERE id > ?1 ORDER BY id LIMIT ?2"
    return [bytes(task_id) for (task_id,) in connection.execute(query, (after, limit))]


def _checkpoint(connection: sqlite3.Connection) -> bool:
    busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return not busy


def _shrink(connection: sqlite3.Connection) -> int:
    """A reader in the way, or a disk that is full already: then nothing is given back, and the log stays as valid as it was."""
    connection.execute("PRAGMA busy_timeout = 0")
    try:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise
    finally:
        connection.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS_MAX * 1000:.0f}")
    pages, size = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("freelist_count", "page_size"))
    return int(pages * size)


# ---- opening ---------------------------------------------------------------------------------------------------------------------------


def _prepare(connection: sqlite3.Connection, path: Path, pack: Pack) -> tuple[dict[str, int], bool]:
    """Check whose file it is and, if it is small, whether it is sound, before anything is changed; then set the pragmas and create what is
    missing.  The named integers, and whether all was looked at."""
    fresh = _is_fresh(connection, path)
    checked = fresh or _check_if_small(connection, pack)
    for name, (value, expected) in PRAGMAS.items():
        connection.execute(f"PRAGMA {name} = {value}").fetchall()
        answer = connection.execute(f"PRAGMA {name}").fetchone()[0]
        if answer != expected:
            version = sqlite3.sqlite_version
            raise StartError(f"{path}: SQLite {version} answers {answer!r} to PRAGMA {name} = {value}; the store cannot run without it")
    statements = SCHEMA if fresh else UPGRADES.get(connection.execute("PRAGMA user_version").fetchone()[0], ())
    if statements:
        _transact(connection, lambda transaction: _change_schema(transaction, statements))
    return _get_meta(connection), checked


def _change_schema(connection: sqlite3.Connection, statements: Sequence[str]) -> None:
    for statement in statements:
        connection.execute(statement)
    count_all(connection)


def _is_fresh(connection: sqlite3.Connection, path: Path) -> bool:
    """True if the file is empty; raises if it is not a store that this version can read."""
    application_id = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if not tables and not application_id and not version:
        return True
    if application_id != APPLICATION_ID:
        raise StoreCorrupt(f"{path} is an SQLite file, but not a taskq store; choose another data folder")
    if version not in (FORMAT, *UPGRADES):
        raise StartError(f"{path}: store format {version}, but this taskq reads format {FORMAT}; start it with the version that wrote it")
    return False


def _check_if_small(connection: sqlite3.Connection, pack: Pack) -> bool:
    """Look at every page, index and row of a store that is small enough for it; False if it is not.  Raises BrokenSeal."""
    pages, page_bytes = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
    if pages * page_bytes > CHECK_BYTES_MAX:
        return False
    if found := pages_damage(connection, "1"):
        raise BrokenSeal(found[0])
    for row in connection.execute(f"SELECT {', '.join(COLUMNS)} FROM tasks"):
        unsealed_live(row, pack)
    if connection.execute("PRAGMA user_version").fetchone()[0] == FORMAT:
        check_counts(connection)
    for row in connection.execute(f"SELECT {', '.join(READ['finished'])} FROM finished"):
        finished_row(*row[1:])
    return True


class SqliteStore:
    """A Store in one SQLite file.  `checked`, once it is open: all of it was found sound, else `integrity_check` is still to be asked."""

    capabilities = Capabilities("sqlite", durable=True)

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checked = False
        self._connection: aiosqlite.Connection | None = None
        self._damaged = False
        # one packer for all commits, for the connection's thread only; a blob of a kind that msgpack does not know is packed as a view of it
        self._pack: Pack = msgpack.Packer(default=memoryview, buf_size=2 * INSIDE_BYTES_MAX).pack

    async def open(self) -> dict[str, int]:
        opening = asyncio.ensure_future(self._open())
        try:
            return await asyncio.shield(opening)
        except BaseException:
            await asyncio.wait([opening])
            await self.release()  # a connection that is left open keeps its thread, and so the process, alive for ever
            raise

    async def _open(self) -> dict[str, int]:
        wal = self.path.with_name(f"{self.path.name}-wal")
        if wal.exists() and wal.stat().st_size and not (self.path.exists() and self.path.stat().st_size):
            raise StoreCorrupt(f"{self.path}: the file is missing or empty, but its log {wal.name} is there; the files were left untouched")
        os.close(open_own(self.path, os.O_RDWR | os.O_CREAT))  # SQLite gives its -wal and -shm files the same mode
        self._connection = await aiosqlite.connect(self.path, timeout=BUSY_SECONDS_MAX, isolation_level=None)
        meta, self.checked = await self._run(_prepare, self.path, self._pack)
        return meta

    async def _run(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run work(connection, *arguments) in the connection's thread, to its end even if the caller is cancelled."""
        if self._connection is None:
            raise ValueError("the store is not open")
        try:
            return await asyncio.shield(self._connection._execute(work, self._connection._conn, *arguments))  # type: ignore[no-untyped-call]
        except (sqlite3.DatabaseError, BrokenSeal) as error:
            if not is_damage(error):
                raise
            self._damaged = True
            raise StoreCorrupt(f"{self.path}: {error}; the file was left untouched") from error

    async def counts(self) -> list[Count]:
        return await self._run(read_counts)

    async def load(self, states: Sequence[int], after_seq: int, limit: int) -> list[Row]:
        return await self._run(_load, self._pack, states, after_seq, limit)

    async def line(self, queue: str, priority: int, task_type: str, state: int, after_position: int, limit: int) -> list[Row]:
        return await self._run(_line, self._pack, state, (queue, priority, task_type, after_position, limit))

    async def due(self, after_ms: int, after_seq: int, limit: int) -> list[Row]:
        return await self._run(_due, self._pack, after_ms, after_seq, limit)

    async def find(self, ids: Sequence[bytes], keys: Sequence[tuple[str, str]]) -> list[Row]:
        return await self._run(_find, self._pack, ids, keys)

    async def newest_id(self, until: bytes) -> bytes:
        return await self._run(_newest_id, until)

    async def ids_after(self, after: bytes, limit: int) -> list[bytes]:
        return await self._run(_ids_after, after, limit)

    async def commit(self, batch: WriteBatch) -> None:
        held = [batch]  # the thread keeps its last job until the next one comes: the job must not keep the payloads
        await self._run(_transact, lambda connection: _apply(connection, held.pop(), self._pack))

    async def prune(self, retention: Retention) -> Pruned:
        return await self._run(_transact, lambda connection: _prune(connection, retention))

    async def checkpoint(self) -> bool:
        return await self._run(_checkpoint)

    async def shrink(self) -> int:
        return await self._run(_shrink)

    def log_bytes(self) -> int:
        try:
            return os.stat(f"{self.path}-wal").st_size
        except FileNotFoundError:
            return 0

    async def close(self) -> None:
        if self._damaged:
            return await self.release()
        connection, self._connection = self._connection, None
        if connection is not None:
            await asyncio.shield(connection.close())
        return None

    async def release(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        with closing(reader_of(self.path)) as reader, suppress(sqlite3.DatabaseError):
            reader.execute("SELECT count(*) FROM sqlite_master").fetchone()  # the last to close brings the log into the file, but not a reader
            await asyncio.shield(connection.close())
            return
        await asyncio.shield(connection.close())
