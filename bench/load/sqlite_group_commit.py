"""Plain SQLite group commit beside journal + write-behind, in one run on one disk: how many tasks a second become durable at each step.

    python bench/load/sqlite_group_commit.py [--tasks 40000] [--batch 500] [--payload 300] [--rounds 3] [--idle] [--switch-interval 0.0005]

Each task takes the same three durable steps: it is inserted, leased, finished.  *plain* makes each step of a batch one SQLite transaction.
*journal* makes each step one journal batch with its own fdatasync, and keeps the finished rows in SQLite by write-behind, as the broker does;
it counts as done only when the store has everything.  Both use the same tables, pragmas and multi-row statements.  The event loop beside
them never sleeps (it stands for the broker's own work, none of which is done here), unless `--idle`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from itertools import chain
from pathlib import Path

import msgpack

from taskq.ids import make_id
from taskq.storage.base import Row, WriteBatch
from taskq.storage.chunks import chunks
from taskq.storage.journal import FileJournal
from taskq.storage.sqlite import SqliteStore, _bind_finished, _delete_tasks, _insert_finished, _insert_tasks, _transact

PENDING, RUNNING, COMPLETED = 2, 3, 5
FLUSH_TASKS = 4_000
FLUSH_BACKLOG_MAX = 20_000
GRANT_HEAD_BYTES, ACK_HEAD_BYTES = 24, 17  # id + token, id + result, as a record carries them

TURN_STEPS = 100_000
PACK = msgpack.Packer().pack

Batch = Sequence[Row]


def make_batches(tasks: int, size: int, payload_bytes: int) -> list[list[Row]]:
    rng = random.Random(1)
    rows = [
        (seq, make_id(1_700_000_000_000 + seq, 7, rng), "email", "send", PENDING, 5, seq, 0, 0, None, rng.randbytes(payload_bytes), b"", b"m" * 40)
        for seq in range(1, tasks + 1)
    ]
    return [rows[at : at + size] for at in range(0, tasks, size)]


def finished(batch: Batch) -> list[Row]:
    return [(*row[:4], COMPLETED, *row[5:8], 1_700_000_000_000, *row[9:]) for row in batch]


def insert(connection: sqlite3.Connection, batch: Batch) -> None:
    for rows in chunks(batch):
        connection.execute(_insert_tasks(len(rows)), list(chain.from_iterable(rows)))


def grant(connection: sqlite3.Connection, batch: Batch) -> None:
    for rows in chunks(batch):
        connection.execute(f"UPDATE tasks SET state = {RUNNING} WHERE seq IN ({', '.join('?' * len(rows))})", [row[0] for row in rows])


def finish(connection: sqlite3.Connection, batch: Batch) -> None:
    for rows in chunks(finished(batch)):
        width, values = _bind_finished(rows, PACK)
        connection.execute(_insert_finished(width, len(rows)), values)
        connection.execute(_delete_tasks(len(rows)), [row[0] for row in rows])


async def plain(folder: Path, batches: Sequence[Batch]) -> None:
    store = SqliteStore(folder / "plain.db")
    await store.open()
    try:
        for batch in batches:
            for step in (insert, grant, finish):
                await store._run(_transact, lambda connection, step=step, batch=batch: step(connection, batch))
    finally:
        await store.close()


async def journaled(folder: Path, batches: Sequence[Batch]) -> None:
    store, journal = SqliteStore(folder / "store.db"), FileJournal(folder / "journal")
    await store.open()
    list(journal.read(0))
    journal.start(1, 1)
    ended: list[Row] = []
    wake, room = asyncio.Event(), asyncio.Event()
    room.set()
    done = False

    async def flush() -> None:
        while not done or ended:
            if not ended:
                await wake.wait()
                wake.clear()
                continue
            rows, lsn = ended[:FLUSH_TASKS], journal.synced_lsn
            await store.commit(WriteBatch(meta={"applied_lsn": lsn}, finish=rows))
            del ended[: len(rows)]
            room.set()

    def step(record: list[bytes | memoryview]) -> None:
        journal.write(journal.end_lsn + 1, [record])
        journal.sync()

    flushing = asyncio.ensure_future(flush())
    try:
        for batch in batches:
            ids = b"".join([row[1] for row in batch])
            await asyncio.to_thread(step, [ids, *(row[10] for row in batch)])
            await asyncio.to_thread(step, [bytes(GRANT_HEAD_BYTES * len(batch))])
            await asyncio.to_thread(step, [bytes(ACK_HEAD_BYTES * len(batch))])
            ended += finished(batch)
            wake.set()
            if len(ended) > FLUSH_BACKLOG_MAX:
                room.clear()
                await room.wait()
    finally:
        done = True
        wake.set()
        await flushing
        await store.close()
        journal.close()


async def measure(way: Callable[[Path, Sequence[Batch]], Awaitable[None]], batches: Sequence[Batch], busy: bool, where: str) -> float:
    """Tasks a second."""
    loop = asyncio.get_running_loop()
    spinning = busy

    def spin() -> None:
        """About 2 ms of byte code, the broker's budget for a turn."""
        for _ in range(TURN_STEPS):
            pass
        if spinning:
            loop.call_soon(spin)

    loop.call_soon(spin)
    try:
        with tempfile.TemporaryDirectory(dir=where) as folder:
            started = time.perf_counter()
            await way(Path(folder), batches)
            return sum(map(len, batches)) / (time.perf_counter() - started)
    finally:
        spinning = False


async def run(options: argparse.Namespace) -> None:
    batches = make_batches(options.tasks, options.batch, options.payload)
    rates: dict[str, list[float]] = {"plain": [], "journal": []}
    for _ in range(options.rounds):
        for name, way in (("plain", plain), ("journal", journaled)):
            rates[name].append(await measure(way, batches, not options.idle, options.folder))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print(
        f"tasks={options.tasks} batch={options.batch} payload={options.payload} B rounds={options.rounds} loop={'idle' if options.idle else 'busy'} "
        f"switch_interval={options.switch_interval} cpus={os.cpu_count()} python={sys.version.split()[0]} sqlite={sqlite3.sqlite_version}"
    )
    for name, values in rates.items():
        print(f"  {name:8} {medians[name]:10,.0f} tasks/s   (lowest {min(values):,.0f}, highest {max(values):,.0f})")
    print(f"  ratio    {medians['journal'] / medians['plain']:10.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", type=int, default=40_000)
    parser.add_argument("--batch", type=int, default=500, help="tasks in one durable step")
    parser.add_argument("--payload", type=int, default=300, help="bytes")
    parser.add_argument("--rounds", type=int, default=3, help="the two ways take turns; the median counts")
    parser.add_argument("--idle", action="store_true", help="let the event loop sleep while the threads work")
    parser.add_argument("--switch-interval", type=float, default=0.0005, help="seconds, as the broker's command line sets it")
    parser.add_argument("--folder", default=".", help="where to put the files; a temporary folder in it is removed afterwards")
    options = parser.parse_args()
    sys.setswitchinterval(options.switch_interval)
    asyncio.run(run(options))


if __name__ == "__main__":
    main()
