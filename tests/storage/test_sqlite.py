"""What is particular to the SQLite engine: pragmas, query plans, files, threads, damaged and foreign files."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import aiosqlite
import msgpack
import pytest

from taskq.errors import StartError, StoreCorrupt
from taskq.storage import sqlite as module
from taskq.storage.base import Count, Retention, Row, WriteBatch
from taskq.storage.integrity import integrity_check
from taskq.storage.sqlite import SqliteStore


def row(seq: int, state: int = 2, payload: bytes = b"p") -> Row:
    return (seq, seq.to_bytes(16, "big"), "email", "send", state, 5, seq, 0, 0, None, payload, b"", b"")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(tmp_path / "store.db")
    await store.open()
    yield store
    await store.close()


def workers() -> list[threading.Thread]:
    """Connections' threads that do not end: one that was told to stop may still be on its last line."""
    threads = [thread for thread in threading.enumerate() if "_connection_worker_thread" in thread.name]
    for thread in threads:
        thread.join(5)
    return [thread for thread in threads if thread.is_alive()]


async def test_a_function_can_be_run_in_the_thread_of_a_connection(tmp_path: Path) -> None:
    """aiosqlite has no public way to do so: this private method is why its version is pinned."""
    async with aiosqlite.connect(tmp_path / "any.db") as connection:
        thread = await connection._execute(threading.current_thread)  # type: ignore[no-untyped-call]
        assert thread is not threading.current_thread()
        assert await connection._execute(lambda c: c.execute("SELECT 1").fetchone(), connection._conn) == (1,)  # type: ignore[no-untyped-call]


async def test_pragmas_are_as_asked(store: SqliteStore) -> None:
    for name, (_, expected) in module.PRAGMAS.items():
        assert await store._run(lambda c, name=name: c.execute(f"PRAGMA {name}").fetchone()[0]) == expected


async def test_a_pragma_that_does_not_take_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.PRAGMAS, "journal_mode", ("wal2", "wal2"))
    store = SqliteStore(tmp_path / "store.db")
    with pytest.raises(StartError, match="journal_mode"):
        await store.open()
    assert workers() == []


async def test_files_are_private(store: SqliteStore) -> None:
    await store.commit(WriteBatch(put=[row(1)]))
    files = sorted(store.path.parent.iterdir())
    assert [path.name for path in files] == ["store.db", "store.db-shm", "store.db-wal"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


async def test_a_checkpoint_empties_the_log(store: SqliteStore) -> None:
    await store.commit(WriteBatch(put=[row(seq) for seq in range(1, 100)]))
    wal = store.path.with_name("store.db-wal")
    assert wal.stat().st_size > 0
    await store.checkpoint()
    assert wal.stat().st_size == 0


async def test_a_checkpoint_says_that_a_reader_blocks_it(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    await store._run(lambda c: c.execute("PRAGMA busy_timeout = 20").fetchall())
    await store.commit(WriteBatch(put=[row(1)]))
    reader = sqlite3.connect(f"{store.path.as_uri()}?mode=ro", uri=True, isolation_level=None)
    try:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM tasks").fetchone()
        await store.commit(WriteBatch(put=[row(2)]))
        assert not await store.checkpoint()
    finally:
        reader.close()
    assert await store.checkpoint()


# ---- plans: nothing that is asked often may read the whole table -------------------------------------------------------------------------

PLANS = {
    module.LOAD_MANY: ["SEARCH tasks USING INTEGER PRIMARY KEY (rowid>?)"],
    module.LOAD_FEW: ["SEARCH tasks USING INDEX tasks_state (state=? AND rowid>?)"],
    module.LINE_PENDING: [
        "CO-ROUTINE (subquery-1)",
        "SEARCH tasks USING INDEX tasks_line (state=? AND queue=? AND priority=? AND task_type=? AND position>?)",
        "SCAN (subquery-1)",
    ],
    module.DUE_THEN: ["CO-ROUTINE (subquery-1)", "SEARCH tasks USING INDEX tasks_due (due_ms=? AND rowid>?)", "SCAN (subquery-1)"],
    module.DUE_LATER: ["CO-ROUTINE (subquery-1)", "SEARCH tasks USING INDEX tasks_due (due_ms>?)", "SCAN (subquery-1)"],
    module._find_ids("tasks", 20): ["SEARCH tasks USING INDEX tasks_id (id=?)"],
    module._find_ids("finished", 20): ["SEARCH finished USING INDEX finished_id (id=?)"],
    module._delete_tasks(20): ["SEARCH tasks USING INTEGER PRIMARY KEY (rowid=?)"],
    module.FIRST_YOUNG: ["SEARCH finished USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)"],
    module.DELETE_FINISHED: ["SEARCH finished USING INTEGER PRIMARY KEY (rowid<?)"],
}


async def _plan(store: SqliteStore, statement: str) -> list[str]:
    nothing = [None] * statement.count("?")
    return [step[3] for step in await store._run(lambda c: c.execute(f"EXPLAIN QUERY PLAN {statement}", nothing).fetchall())]


@pytest.mark.parametrize("statement", PLANS, ids=lambda statement: statement[:50] + statement[-50:])
async def test_a_statement_uses_its_index_and_sorts_nothing(store: SqliteStore, statement: str) -> None:
    assert await _plan(store, statement) == PLANS[statement]


@pytest.mark.parametrize("table", ["tasks", "finished"])
async def test_keys_are_found_by_their_index(store: SqliteStore, table: str) -> None:
    assert f"SEARCH t USING INDEX {table}_key (queue=? AND key=?)" in await _plan(store, module._find_keys(table, 20))


async def test_old_dead_letters_are_found_by_their_index(store: SqliteStore) -> None:
    assert any("INDEX tasks_failed (finished_ms<?)" in step for step in await _plan(store, module.DELETE_FAILED))


async def test_counting_the_tasks_reads_none_of_them(store: SqliteStore) -> None:
    await store.commit(WriteBatch(put=[row(seq) for seq in range(1, 9)]))
    await store._run(lambda c: c.execute("DROP TABLE tasks").fetchall())
    assert await store.counts() == [Count("email", 2, 5, "send", 8)]


async def test_counts_that_are_not_those_of_the_rows_are_found_at_a_start(store: SqliteStore) -> None:
    await store.commit(WriteBatch(put=[row(seq) for seq in range(1, 9)]))
    await store._run(lambda c: c.execute("DELETE FROM counts").fetchall())
    await store.close()
    await refused(store.path, StoreCorrupt, "table counts does not say")


async def test_a_count_that_is_not_as_it_was_written_is_never_handed_out(store: SqliteStore) -> None:
    await store.commit(WriteBatch(put=[row(seq) for seq in range(1, 9)]))
    await store._run(lambda c: c.execute("UPDATE counts SET tasks = 9").fetchall())
    with pytest.raises(StoreCorrupt, match="in table counts is not as it was written"):
        await store.counts()


# ---- finished rows ------------------------------------------------------------------------------------------------------------------------

SMALL, LARGE = b"s" * (module.INSIDE_BYTES_MAX - 3), b"l" * (module.INSIDE_BYTES_MAX - 2)


def ended(seq: int, key: str | None = None, payload: Any = SMALL, result: Any = b"42!", finished_ms: int = 7) -> Row:
    return (seq, seq.to_bytes(16, "big"), "email", "send", 5, -1, 2**62, 2**53 + 1, finished_ms, key, payload, result, b"\x00meta\xff")


def columns(store: SqliteStore, names: str) -> Awaitable[list[tuple[Any, ...]]]:
    return store._run(lambda c: c.execute(f"SELECT {names} FROM finished ORDER BY place").fetchall())


MIXES = {
    "bare": [ended(1), ended(2, payload=b"", result=b"")],
    "with keys": [ended(1), ended(2, key="k"), ended(3, key=""), ended(4)],
    "large": [ended(1), ended(2, payload=LARGE), ended(3, payload=b"", result=LARGE * 2), ended(4)],
    "large before keys": [ended(1, payload=LARGE), ended(2, key="k"), ended(3, key="k", payload=LARGE), ended(4)],
    "every kind, many": [ended(seq, "k" if seq % 7 == 0 else None, LARGE if seq % 90 == 0 else SMALL[:300]) for seq in range(1, 1022)],
}


@pytest.mark.parametrize("rows", MIXES.values(), ids=MIXES)
async def test_finished_rows_of_any_mix_are_found_as_they_were_and_in_order(store: SqliteStore, rows: list[Row]) -> None:
    await store.commit(WriteBatch(finish=rows))
    assert await store.find([found[1] for found in reversed(rows)], []) == rows
    assert await store.find([], [("email", "k")]) == [found for found in rows if found[9] == "k"]
    assert await columns(store, "place") == [(place,) for place in range(1, len(rows) + 1)]


async def test_a_finished_row_has_only_the_columns_that_it_needs(store: SqliteStore) -> None:
    await store.commit(WriteBatch(finish=[ended(1), ended(2, key="k"), ended(3, payload=LARGE), ended(4, key="k", result=LARGE)]))
    assert await columns(store, "queue, key, payload, result") == [
        (None, None, None, None),
        ("email", "k", None, None),
        (None, None, LARGE, b"42!"),
        ("email", "k", SMALL, LARGE),
    ]
    assert [len(body) > len(SMALL) for (body,) in await columns(store, "body")] == [True, True, False, False]


async def test_a_large_finished_payload_is_bound_uncopied() -> None:
    payload, result = memoryview(LARGE), memoryview(b"42!")
    width, values = module._bind_finished([ended(1), ended(2, payload=payload, result=result)], msgpack.packb)
    assert width == len(module.FINISHED) == len(values) // 2
    assert values[-2] is payload and values[-1] is result
    assert len(values[-5]) < 100


async def test_finished_blobs_may_be_buffers_of_any_kind_and_come_back_as_bytes(store: SqliteStore) -> None:
    frame = bytearray(b"..hello..")
    rows = [ended(1, payload=memoryview(frame)[2:7], result=array("B", b"r")), ended(2, payload=bytearray(LARGE), result=array("B", b"42!"))]
    await store.commit(WriteBatch(finish=[(*found[:12], memoryview(found[12])) for found in rows]))
    frame[:] = b"overwrite"
    found = await store.find([rows[0][1], rows[1][1]], [])
    assert found == [ended(1, payload=b"hello", result=b"r"), ended(2, payload=LARGE)]
    assert all(type(value) is bytes for row in found for value in (row[1], *row[10:]))


@pytest.mark.parametrize("size", [100, 100_000])
async def test_a_finishing_commit_does_not_keep_its_payloads(store: SqliteStore, size: int) -> None:
    frame = bytearray(size)
    await store.commit(WriteBatch(finish=[ended(1, payload=memoryview(frame))]))
    frame.extend(b"resizable again, since no view of it is left")


async def test_a_finished_row_that_cannot_be_packed_leaves_nothing_behind(store: SqliteStore) -> None:
    with pytest.raises(TypeError):
        await store.commit(WriteBatch(put=[row(1)], finish=[ended(2), (*ended(3)[:12], object())]))
    assert await store.load([2], 0, 10) == []
    await store.commit(WriteBatch(finish=[ended(4)]))
    assert await store.find([ended(seq)[1] for seq in (2, 3, 4)], []) == [ended(4)]


# ---- threads and cancellation -------------------------------------------------------------------------------------------------------------


async def test_a_cancelled_commit_is_whole_and_the_next_one_works(store: SqliteStore) -> None:
    started, go = threading.Event(), threading.Event()

    def block(_: sqlite3.Connection) -> bool:
        started.set()
        return go.wait(5)

    blocker = asyncio.ensure_future(store._run(block))
    committing = asyncio.ensure_future(store.commit(WriteBatch(put=[row(seq) for seq in range(1, 50)])))
    await asyncio.to_thread(started.wait, 5)
    committing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await committing
    go.set()
    await blocker
    await store.commit(WriteBatch(put=[row(50)]))
    assert len(await store.load([2], 0, 100)) == 50


async def test_a_cancelled_opening_leaves_no_thread_behind(tmp_path: Path) -> None:
    for turns in range(6):
        opening = asyncio.ensure_future(SqliteStore(tmp_path / f"{turns}.db").open())
        for _ in range(turns):
            await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert workers() == []


async def test_a_commit_does_not_keep_its_payloads(store: SqliteStore) -> None:
    frame = bytearray(1000)
    await store.commit(WriteBatch(put=[(*row(1)[:10], memoryview(frame), b"", b"")]))
    frame.extend(b"resizable again, since no view of it is left")


async def test_a_store_that_is_not_open_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not open"):
        await SqliteStore(tmp_path / "store.db").counts()


# ---- damaged and foreign files ------------------------------------------------------------------------------------------------------------


async def refused(path: Path, error: type[Exception], match: str) -> None:
    before = path.read_bytes()
    with pytest.raises(error, match=match):
        await SqliteStore(path).open()
    assert workers() == []
    assert path.read_bytes() == before


async def test_a_file_that_is_not_a_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(b"not a database " * 1000)
    await refused(path, StoreCorrupt, "store.db.*left untouched")


async def test_a_database_of_somebody_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE mine (x)")
    connection.close()
    await refused(path, StoreCorrupt, "not a taskq store")


async def test_a_newer_format_is_refused(store: SqliteStore) -> None:
    await store._run(lambda c: c.execute(f"PRAGMA user_version = {module.FORMAT + 1}").fetchall())
    await store.close()
    await refused(store.path, StartError, f"store format {module.FORMAT + 1}")


async def test_a_folder_that_does_not_exist_is_an_error_of_the_engine(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        await SqliteStore(tmp_path / "missing" / "store.db").open()
    assert workers() == []


async def test_integrity_check_finds_damage_and_nothing_else(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    await store.commit(WriteBatch(put=[row(seq, payload=bytes(300)) for seq in range(1, 2000)]))
    await store.checkpoint()
    assert integrity_check(store.path) == []
    await store.close()
    data = bytearray(store.path.read_bytes())
    middle = len(data) // 2 // 4096 * 4096
    data[middle : middle + 4096] = os.urandom(4096)
    store.path.write_bytes(data)
    assert integrity_check(store.path) != []
    await refused(store.path, StoreCorrupt, "integrity|Page|malformed")
    monkeypatch.setattr(module, "CHECK_BYTES_MAX", len(data) - 1)
    await store.open()
    assert not store.checked


async def damaged(store: SqliteStore, statement: str) -> None:
    """What a flipped bit inside a row is to SQLite: a value that somebody wrote."""
    await store._run(lambda c: c.execute(statement).fetchall())


SMALL_DAMAGE = {
    "a live row's payload": ("UPDATE tasks SET payload = x'00' WHERE seq = 1", "row 1 of table tasks"),
    "the type of a live row's payload": ("UPDATE tasks SET payload = 'q' WHERE seq = 1", "row 1 of table tasks"),
    "a payload that became a text that is none": ("UPDATE tasks SET payload = CAST(x'ff' AS TEXT) WHERE seq = 1", "decode"),
    "a live row's priority": ("UPDATE tasks SET priority = 7 WHERE seq = 1", "row 1 of table tasks"),
    "a live row's key": ("UPDATE tasks SET key = '' WHERE seq = 1", "row 1 of table tasks"),
    "a live row's meta": ("UPDATE tasks SET meta = CAST(x'00' || substr(meta, 2) AS BLOB) WHERE seq = 1", "row 1 of table tasks"),
    "a finished row's body": ("UPDATE finished SET body = CAST(body || x'00' AS BLOB) WHERE place = 1", "row of task 0{30}02 in table finished"),
    "a finished row's time": ("UPDATE finished SET finished_ms = 8 WHERE place = 1", "row of task 0{30}02 in table finished"),
    "a finished row's id": ("UPDATE finished SET id = zeroblob(16) WHERE place = 1", "row of task 0{32} in table finished"),
    "a large result": ("UPDATE finished SET result = x'00' WHERE place = 2", "row of task 0{30}03 in table finished"),
    "a named integer": ("UPDATE meta SET value = value + 4 WHERE name = 'applied_lsn'", "row 'applied_lsn' of table meta"),
}


@pytest.mark.parametrize("statement, words", SMALL_DAMAGE.values(), ids=SMALL_DAMAGE)
@pytest.mark.parametrize("large", [False, True], ids=["small store", "large store"])
async def test_a_row_that_is_not_as_it_was_written_is_never_handed_out(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch, statement: str, words: str, large: bool
) -> None:
    await store.commit(WriteBatch({"applied_lsn": 9}, put=[(*row(1)[:12], b"meta")], finish=[ended(2), ended(3, payload=LARGE)]))
    await damaged(store, statement)
    await store.checkpoint()
    await store.close()
    if not large:
        await refused(store.path, StoreCorrupt, words)
        return
    monkeypatch.setattr(module, "CHECK_BYTES_MAX", 0)
    with pytest.raises(StoreCorrupt, match=words):
        await store.open()
        await store.find([seq.to_bytes(16, "big") for seq in range(4)], [])
    await store.close()
    assert workers() == []


async def test_an_index_that_does_not_fit_its_table_is_found(store: SqliteStore) -> None:
    await store.commit(WriteBatch(put=[row(seq) for seq in range(1, 9)]))
    await damaged(store, "PRAGMA writable_schema = ON")
    await damaged(store, "UPDATE sqlite_master SET sql = replace(sql, 'state = 2', 'state = 3') WHERE name = 'tasks_line'")
    await store.close()
    await refused(store.path, StoreCorrupt, "tasks_line")


async def test_released_files_are_left_as_they_are(store: SqliteStore) -> None:
    await store.commit(WriteBatch(put=[row(seq) for seq in range(1, 9)]))
    wal = store.path.with_name("store.db-wal")
    before = (store.path.read_bytes(), wal.read_bytes())
    assert before[1]
    await store.release()
    assert workers() == []
    assert (store.path.read_bytes(), wal.read_bytes()) == before
    await store.open()
    assert len(await store.load([2], 0, 100)) == 8


async def test_a_damaged_store_is_closed_without_bringing_its_log_into_the_file(store: SqliteStore) -> None:
    await store.commit(WriteBatch(put=[row(1)]))
    await damaged(store, "UPDATE tasks SET priority = 7")
    wal = store.path.with_name("store.db-wal")
    before = (store.path.read_bytes(), wal.read_bytes())
    with pytest.raises(StoreCorrupt, match="row 1 of table tasks"):
        await store.load([2], 0, 100)
    await store.close()
    assert (store.path.read_bytes(), wal.read_bytes()) == before


@pytest.mark.parametrize("left", [None, b""], ids=["missing", "empty"])
async def test_a_missing_file_whose_log_is_there_is_refused_and_the_log_is_kept(store: SqliteStore, left: bytes | None) -> None:
    """SQLite would delete the log without a word."""
    await store.commit(WriteBatch(put=[row(1)]))
    await store.release()
    wal = store.path.with_name("store.db-wal")
    before = wal.read_bytes()
    store.path.unlink()
    if left is not None:
        store.path.write_bytes(left)
    with pytest.raises(StoreCorrupt, match=r"its log store\.db-wal is there"):
        await store.open()
    assert wal.read_bytes() == before


async def test_places_of_finished_tasks_have_no_gaps_after_everything_was_pruned(store: SqliteStore) -> None:
    await store.commit(WriteBatch(finish=[row(seq, 5) for seq in range(1, 6)]))
    assert (await store.prune(Retention(1, 0, 0))).rows == 5
    await store.commit(WriteBatch(finish=[row(seq, 5) for seq in range(6, 9)]))
    assert (await store.prune(Retention(0, 0, 2))).rows == 1


# ---- the process dies ---------------------------------------------------------------------------------------------------------------------

KILLED = """
import asyncio, os, sys
from pathlib import Path
from taskq.storage.base import WriteBatch
from taskq.storage.sqlite import SqliteStore

async def main():
    store = SqliteStore(Path(sys.argv[1]))
    await store.open()
    for n in range(1, 40):
        rows = [(seq, bytes(16), "q", "t", 2, 5, seq, 0, 0, None, b"p" * 100, b"", b"") for seq in range(n * 100, n * 100 + 50)]
        await store.commit(WriteBatch(meta={"applied_lsn": n}, put=rows))
        print(n, flush=True)
    os.kill(os.getpid(), 9)

asyncio.run(main())
"""


async def test_a_killed_process_loses_no_commit_and_leaves_none_half_done(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    died = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", KILLED, str(path)], capture_output=True, timeout=30)
    assert died.returncode == -9, died.stderr
    confirmed = int(died.stdout.split()[-1])
    store = SqliteStore(path)
    meta = await store.open()
    assert meta["applied_lsn"] == confirmed == 39
    assert len(await store.load([2], 0, 10_000)) == confirmed * 50
    await store.close()


async def test_a_reader_in_the_way_of_giving_back_is_not_waited_for(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store.sqlite")
    await store.open()
    reader = sqlite3.connect(f"{store.path.as_uri()}?mode=ro", uri=True, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM tasks").fetchone()
    await store.commit(WriteBatch(meta={"a": 1}))
    began_s = time.monotonic()
    await store.shrink()
    assert time.monotonic() - began_s < 2 and store.log_bytes() > 0
    reader.close()
    await store.shrink()
    assert store.log_bytes() == 0
    await store.close()


async def test_huge_blobs_are_written_whole_and_in_their_order(store: SqliteStore) -> None:
    first, second = b"a" * 3_000_000, b"b" * 70_000
    await store.commit(WriteBatch(put=[row(1), row(2, payload=first), row(3), row(4, payload=second)]))
    assert [each[10] for each in await store.load([2], 0, 10)] == [b"p", first, b"p", second]
    await store.commit(WriteBatch(put=[(*row(2, payload=first)[:6], 77, *row(2, payload=first)[7:])]))
    assert [each[6] for each in await store.load([2], 0, 10)] == [1, 77, 3, 4]
    done = [row(5, 5), row(2, 5, first), (*row(4, 5, b"")[:9], "key", b"p", memoryview(second), b"meta"), row(1, 5)]
    await store.commit(WriteBatch(delete=[2, 4, 1], finish=done))
    found = await store.find([each[1] for each in done], [])
    assert [tuple(map(bytes, each[10:])) for each in found] == [tuple(map(bytes, each[10:])) for each in done]
    assert [each[0] for each in await store.find([], [("email", "key")])] == [4]
    assert integrity_check(store.path) == []


async def test_a_huge_blob_is_not_copied_and_no_statement_keeps_it(store: SqliteStore) -> None:
    payload = bytes(32 << 20)

    def rss(name: str) -> int:
        return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)) << 10

    await store.commit(WriteBatch(put=[row(1, payload=bytes(1 << 20))] * 1))
    before = rss("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    await store.commit(WriteBatch(put=[row(2, payload=payload)]))
    await store.commit(WriteBatch(delete=[2], finish=[row(2, 5, payload)]))
    assert rss("VmHWM") - before < 24 << 20, "SQLite's cache of pages has 16 MiB"
