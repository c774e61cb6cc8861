"""Replay: how long a broker takes to start on a journal of 1 GiB of which its store has nothing.

The journal is made as by a broker that never flushes: its own recovery of an empty folder, a real shard that decides, its records encoded and
written as the journal actor does, one batch a turn.  Only the store is never told.  Then the real broker starts on that folder, and what it
has kept at its end is compared with what was decided.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import attrs

sys.path.append(str(Path(__file__).parents[1] / "load"))

from children import Program
from figures import environment
from finding import Finding, Settings
from wire import Peer

from taskq.config import BrokerConfig
from taskq.core import effects as fx
from taskq.core import messages as m
from taskq.core.admission import Limits
from taskq.core.book import Sequence64, Shared
from taskq.core.consumer import Consumer
from taskq.core.line import Budget
from taskq.core.shard import Shard
from taskq.core.task import CLEAN, FINAL, Task
from taskq.ids import make_id, slot_of_queue
from taskq.storage.journal import FileJournal
from taskq.storage.recovery import EPOCH_SHIFT, recover
from taskq.storage.rows import encode_record
from taskq.storage.sqlite import SqliteStore

JOURNAL_BYTES = 1 << 30
READY_S_MAX = 20.0
QUEUE, TASK_TYPE, SESSION = "bench", "noop", b"s" * 16
TURN_MS = 20
FAILS_EACH = 100  # one of so many runs fails, and is tried again
UNLIMITED = 1 << 62
MIB = 1 << 20


@attrs.frozen
class Shape:
    """What the tasks are like.  `frame_tasks` and `ack_tasks`: in one ENQUEUE, in one ACK.  `running` and `left`: how many run at a time, and how
    many more wait at the end."""

    name: str
    payload_bytes: int
    frame_tasks: int
    ack_tasks: int
    running: int
    left: int


SHAPES = (Shape("150-byte payloads", 150, 1_000, 100, 2_000, 10_000), Shape("1 MiB payloads", MIB, 1, 1, 8, 16))


class Maker:
    """A shard with one worker, driven turn by turn."""

    def __init__(self, shape: Shape, journal: FileJournal, epoch: int) -> None:
        self.shape, self.journal = shape, journal
        self.enqueued = self.completed = self.failures = 0
        self._rng = random.Random(1)
        limits = Limits(payload_bytes_max=64 * MIB, queue_tasks_max=0, queue_bytes_max=0)
        shared = Shared(Sequence64(1), Sequence64(epoch << EPOCH_SHIFT | 1), Budget(UNLIMITED), self._rng, limits)
        self._worker = Consumer(SESSION, "flat", UNLIMITED, origin=2, queues=(QUEUE,), task_types=frozenset({TASK_TYPE}))
        shared.consumers[SESSION] = self._worker
        self._shard = Shard(0, 1, shared)
        self._now_ms = time.time_ns() // 1_000_000 - 3_600_000
        self._noise = memoryview(self._rng.randbytes(2 * shape.payload_bytes + MIB))

    def make(self, journal_bytes: int) -> None:
        shape = self.shape
        while self.journal.bytes_written < journal_bytes - shape.left * shape.payload_bytes:
            held = list(self._shard.held.get(SESSION, {}).values())
            self._worker.allowed = self._worker.delivered + shape.running
            self._turn([*self._reports(held), self._enqueue(), fx.Command(0, 0, fx.Ready(SESSION))])
        self._worker.allowed = self._worker.delivered
        for _ in range(shape.left // shape.frame_tasks):
            self._turn([self._enqueue()])

    def _turn(self, commands: list[fx.Command]) -> None:
        self._now_ms += TURN_MS
        effects = self._shard.turn(commands, self._now_ms)
        if effects.bugs:
            raise effects.bugs[0][1]
        self.journal.write(self.journal.end_lsn + 1, [encode_record(record) for record in effects.records])
        for task in self._shard.take_dirty():
            task.dirty = CLEAN
            if task.state in FINAL:
                del self._shard.tasks[task.id]

    def _enqueue(self) -> fx.Command:
        count, size, room = self.shape.frame_tasks, self.shape.payload_bytes, len(self._noise) - self.shape.payload_bytes
        slot = slot_of_queue(QUEUE)
        ids = b"".join([make_id(self._now_ms, slot, self._rng) for _ in range(count)])
        starts = [self._rng.randrange(room) for _ in range(count)]
        self.enqueued += count
        return fx.Command(1, 1, m.Enqueue([self._noise[start : start + size] for start in starts], QUEUE, ids, [TASK_TYPE]))

    def _reports(self, held: list[Task]) -> Iterator[fx.Command]:
        for begin in range(0, len(held), self.shape.ack_tasks):
            tasks = held[begin : begin + self.shape.ack_tasks]
            failed = [task for task in tasks if task.seq % FAILS_EACH == 0 and not task.attempts]
            good = [task for task in tasks if task not in failed]
            self.completed, self.failures = self.completed + len(good), self.failures + len(failed)
            if good:
                yield fx.Command(2, 1, m.Ack([b"\xc0"] * len(good), _ids(good), _tokens(good)), session=SESSION)
            if failed:
                yield fx.Command(2, 1, m.Fail(_ids(failed), _tokens(failed), [m.RETRY], [0], ["ValueError"], ["no such user"]), session=SESSION)


def _ids(tasks: list[Task]) -> bytes:
    return b"".join([task.id for task in tasks])


def _tokens(tasks: list[Task]) -> bytes:
    return b"".join([task.token.to_bytes(8, "big") for task in tasks])


async def make_journal(data: Path, shape: Shape, journal_bytes: int) -> Maker:
    """A data folder whose journal has so many bytes, and whose store has none of it."""
    data.mkdir(mode=0o700)
    store, journal = SqliteStore(data / "store.sqlite"), FileJournal(data / "journal")
    recovered = await recover(store, journal)
    maker = Maker(shape, journal, recovered.epoch)
    maker.make(journal_bytes)
    journal.sync()
    journal.release()
    await store.close()
    return maker


# ---- the part ----------------------------------------------------------------------------------------------------------------------


def replay(settings: Settings) -> Iterator[Finding]:
    for shape in SHAPES:
        yield from _replay(settings, shape)


def _replay(settings: Settings, shape: Shape) -> Iterator[Finding]:
    with tempfile.TemporaryDirectory(dir=settings.folder, prefix="taskq-bench-") as folder:
        data = Path(folder) / "data"
        made = asyncio.run(make_journal(data, shape, settings.sized(JOURNAL_BYTES)))
        what = f"a journal of {made.journal.bytes_written / MIB:,.0f} MiB, {made.enqueued:,} tasks, {shape.name}"
        flags = ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data", str(data)]
        with Program.installed("broker", *flags, environ=environment()) as broker:
            ready, ready_ns = broker.wait_for_line(r"^taskq-broker listening tcp=(\S+)", 600)
            yield Finding(f"{what}: start → ready", (ready_ns - broker.started_ns) / 1e9, "s", at_most=READY_S_MAX)
            with Peer(ready[1], "worker", 2 * MIB) as worker:
                worker.consume(QUEUE, TASK_TYPE, 1)
                worker.wait_for(m.Deliver)
                yield Finding("start → first delivery", (time.monotonic_ns() - broker.started_ns) / 1e9, "s")
            yield Finding("peak RSS of the broker", _peak_bytes(broker.pid) / MIB, "MiB")
        _check(data / "store.sqlite", made)


def _peak_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) << 10


def _check(store: Path, made: Maker) -> None:
    """The unfinished tasks are there, and of the finished ones as many as are kept."""
    with sqlite3.connect(f"file:{store}?mode=ro", uri=True) as connection:
        live, finished = (connection.execute(f"SELECT count(*), count(DISTINCT id) FROM {table}").fetchone() for table in ("tasks", "finished"))
    left = made.enqueued - made.completed
    kept = range(min(made.completed, BrokerConfig().finished_rows_max), made.completed + 1)
    if live != (left, left) or finished[0] not in kept or len({*finished}) != 1:
        raise RuntimeError(f"{left} tasks did not end and {made.completed} did, but the store has {live} and {finished} rows and ids of them")


if __name__ == "__main__":
    scale = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    for found in replay(Settings(Path.cwd(), scale)):
        print(f"{found.what}: {found.value:.2f} {found.unit}", flush=True)
