"""Recovery: bring the store up to the end of the journal, then load the shards from the store.

There is one way to load, so a start after a crash and a clean one differ only in how much is replayed.  Replay runs the same `evolve` as the
live shard, on a scratch shard that owns all slots; a record that names a task which is not in memory finds its row in the store first.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence

import attrs

from taskq.core import records as r
from taskq.core.attempt import lean
from taskq.core.book import Sequence64, Shared
from taskq.core.consumer import Consumer
from taskq.core.idtime import FRESH_MS
from taskq.core.line import TASK_BYTES, Budget, Line
from taskq.core.queue import Queue
from taskq.core.recent import AHEAD_MAX
from taskq.core.ring import Ring
from taskq.core.shard import Shard
from taskq.core.task import FAILED, FINAL, PENDING, RETRYING, RUNNING, SCHEDULED, WAITING, Task
from taskq.errors import JournalCorrupt, StartError
from taskq.ids import ID_BYTES, ms_of_id, split
from taskq.storage.base import AHEAD_ID_MS, ID_MS_MAX, PRUNED_ID_MS, Journal, JournalBatch, Store, WriteBatch
from taskq.storage.rows import QUEUE_BYTES, SIZES_KEPT, Opened, batch_of, open_record, size_names, task_of
from taskq.storage.stretch import Stretch

# a stretch that is replayed and flushed at once: so many changes of tasks, or so many bytes
FLUSH_TASKS = 120_000
FLUSH_BYTES = 32 << 20
LEFT_OUT_TIMES = 3
PAGE_ROWS = 2_000
EPOCH_SHIFT = 40
# the named integer that says how far the last start has brought the store
REPLAYED_LSN = "replayed_lsn"
# the fields that say where a record begins to take numbers of the sequence
FIRST_SEQ: dict[type, str] = {r.Admitted: "first_seq", r.Promoted: "first_position"}
BY_COUNT = (SCHEDULED, RETRYING, PENDING, FAILED)
UNFINISHED = (SCHEDULED, WAITING, PENDING, RUNNING, RETRYING)


@attrs.frozen
class Recovered:
    """Where the new epoch begins.  `queue_bytes`: the payloads of the unfinished tasks of each queue."""

    epoch: int
    next_lsn: int
    next_seq: int
    pruned_id_ms: int
    ahead_id_ms: int
    replayed: int
    queue_bytes: Mapping[str, int] = attrs.field(factory=dict)


class Lineless(Queue):
    """A queue that nobody takes from: its tasks stand in no line."""

    def line(self, priority: int, task_type: str) -> Line:
        return NO_LINE


class NoLine(Line):
    def add(self, task: Task) -> None:
        pass

    def extend(self, tasks: list[Task]) -> None:
        pass

    def give_back(self, task: Task) -> None:
        pass

    def remove(self, task: Task) -> None:
        pass

    def remove_all(self, tasks: list[Task]) -> None:
        pass


NO_LINE = NoLine("", 0, "", Budget(0))


class Scratch(Shard):
    def queue(self, name: str, bringer: str = "") -> Queue:
        queue = self.queues.get(name)
        if queue is None:
            queue = self.queues[name] = Lineless(name, self.shared.budget)
        return queue


def scratch() -> Shard:
    """A shard that owns all slots and meets nobody."""
    return Scratch(0, 1, Shared(Sequence64(1), Sequence64(1), Budget(0), random.Random(0)))


async def recover(store: Store, journal: Journal, finished_rows_max: int | None = None, ids_until_ms: int = ID_MS_MAX) -> Recovered:
    """Replay the journal into the store and begin a new epoch in both.  Of the tasks that it completed at least the newest `finished_rows_max` get a
    row; older ones may be left out, as if they had been pruned, `ids_until_ms` as in Retention.  Raises JournalCorrupt, StoreCorrupt, and leaves
    the files as they are then."""
    try:
        return await _recover(store, journal, finished_rows_max, ids_until_ms)
    except StartError:
        await store.release()
        raise


async def _recover(store: Store, journal: Journal, finished_rows_max: int | None, ids_until_ms: int) -> Recovered:
    meta = await store.open()
    applied_lsn = meta.get("applied_lsn", 0)
    completed = Completed()
    look = None if finished_rows_max is None else completed.count
    replay = Replay(store, meta, await _queue_bytes(store, meta), ids_until_ms)
    for batch in journal.read(applied_lsn, meta.get(REPLAYED_LSN, 0), look):  # held by no name, so that an error closes its file at once
        if not replay.replayed and finished_rows_max is not None:
            replay.surplus = completed.tasks - finished_rows_max
        await replay.take(batch)
    await replay.end()
    if not await store.checkpoint():
        raise StartError("the store is being read by another program, a backup perhaps, and cannot be checked in; start again when that has ended")
    journal.start(replay.epoch, replay.lsn + 1)
    journal.drop(replay.lsn)
    return Recovered(replay.epoch, replay.lsn + 1, replay.next_seq, replay.pruned_id_ms, replay.ahead_id_ms, replay.replayed, replay.sizes)


class Completed:
    """Counts the tasks that the journal completes, while it is looked at as a whole."""

    def __init__(self) -> None:
        self.tasks = 0

    def count(self, batch: JournalBatch) -> None:
        for lsn, data in enumerate(batch.records, batch.first_lsn):
            opened = _opened(data, lsn)
            if opened.cls is r.Completed:
                self.tasks += len(opened.get("ids")) // ID_BYTES


class Replay:
    """The journal on its way into the store, stretch by stretch.

    `surplus`: so many of the tasks that it completes are followed by as many younger ones as are kept."""

    def __init__(self, store: Store, meta: dict[str, int], sizes: Counter[str], ids_until_ms: int) -> None:
        self.lsn, self.next_seq, self.epoch = meta.get("applied_lsn", 0), meta.get("next_seq", 1), meta.get("epoch", 0)
        self.pruned_id_ms, self.ahead_id_ms = meta.get(PRUNED_ID_MS, 0), meta.get(AHEAD_ID_MS, 0)
        self.sizes = sizes
        self.replayed = self.surplus = 0
        self._store = store
        self._ids_until_ms = ids_until_ms
        self._shard = scratch()
        self._stretch = Stretch()

    async def take(self, batch: JournalBatch) -> None:
        self.epoch = max(self.epoch, batch.epoch)
        for lsn, data in enumerate(batch.records, batch.first_lsn):
            opened = _opened(data, lsn)
            self._stretch.add(opened, len(data) + await self._adopt_missing(opened))
            self.next_seq, self.lsn = max(self.next_seq, _following_seq(opened)), lsn
        self.replayed += len(batch.records)
        # the longer a stretch, the more tasks come and go in it; those that are left out take no memory
        if self._stretch.changes >= FLUSH_TASKS * (LEFT_OUT_TIMES if self.surplus > 0 else 1) or self._stretch.size >= FLUSH_BYTES:
            await self._flush({})

    async def end(self) -> None:
        """The rest, and the new epoch."""
        self.epoch += 1
        await self._flush({"epoch": self.epoch})

    async def _flush(self, meta: dict[str, int]) -> None:
        stretch, self._stretch = self._stretch, Stretch()
        for record in stretch.without(self._left_out(stretch)):
            self._shard.replay(record)
        meta = {"applied_lsn": self.lsn, REPLAYED_LSN: self.lsn, "next_seq": self.next_seq, **meta}
        marks = {PRUNED_ID_MS: self.pruned_id_ms, AHEAD_ID_MS: self.ahead_id_ms}
        meta.update({name: ms for name, ms in marks.items() if ms})
        batch = _flush_of(self._shard, self.sizes, meta)
        self._shard = _successor(self._shard)
        await self._store.commit(batch)

    def _left_out(self, stretch: Stretch) -> frozenset[bytes]:
        self.surplus -= stretch.completed
        left_out = stretch.passing() if self.surplus >= 0 and stretch.completed else frozenset[bytes]()
        if left_out:
            times_ms = list(map(ms_of_id, left_out))
            self.pruned_id_ms = max([self.pruned_id_ms, *(ms for ms in times_ms if ms <= self._ids_until_ms)])
            self.ahead_id_ms = max([self.ahead_id_ms, *(ms for ms in times_ms if ms > self._ids_until_ms)])
        return left_out

    async def _adopt_missing(self, opened: Opened) -> int:
        """Have the tasks at hand that the record names and the store knows; how many bytes they are.  They count for the length of the stretch, since
        a record that names a task takes a hundredth of the memory that the task does."""
        if opened.cls is r.Admitted:
            return 0
        known, admitted = self._shard.tasks, self._stretch.admitted
        missing = [task_id for task_id in split(opened.get("ids"), ID_BYTES) if task_id not in known and task_id not in admitted]
        tasks = [task_of(row) for row in await self._store.find(missing, [])] if missing else []
        for task in tasks:
            self._shard.adopt(task)
        return sum([TASK_BYTES + len(task.payload) for task in tasks])


def _opened(data: memoryview, lsn: int) -> Opened:
    try:
        return open_record(data)
    except ValueError as error:
        raise JournalCorrupt(f"record {lsn} of the journal: {error}") from error


def _successor(shard: Shard) -> Shard:
    """A scratch shard after a flush: what may still change is at hand, but for large payloads, which are views of all that was read with them."""
    fresh = scratch()
    live = [task for task in shard.tasks.values() if task.state not in FINAL and type(task.payload) is bytes]
    if len(live) <= FLUSH_TASKS:
        for task in live:
            task.hot, task.history = False, lean(task.history)
            fresh.adopt(task)
    return fresh


async def _queue_bytes(store: Store, meta: dict[str, int]) -> Counter[str]:
    """The payloads of the unfinished tasks of each queue, as the last flush left them; a store of a version that did not keep them is read."""
    sizes = Counter({name.removeprefix(QUEUE_BYTES): value for name, value in meta.items() if name.startswith(QUEUE_BYTES)})
    if SIZES_KEPT in meta:
        return sizes
    after_seq = 0
    while rows := await store.load(UNFINISHED, after_seq, PAGE_ROWS):
        for task in map(task_of, rows):
            sizes[task.queue] += len(task.payload)
        after_seq = rows[-1][0]
    return sizes


def _flush_of(shard: Shard, sizes: Counter[str], meta: dict[str, int]) -> WriteBatch:
    """The transaction for what was replayed; the scratch shard knows by how much its queues have changed."""
    tasks = shard.take_dirty()
    sizes.update(shard.take_sizes())
    return batch_of(tasks, {**meta, **size_names(sizes)})


def _following_seq(opened: Opened) -> int:
    first = FIRST_SEQ.get(opened.cls)
    return 0 if first is None else int(opened.get(first)) + len(opened.get("ids")) // ID_BYTES


async def load(store: Store, shards: Sequence[Shard], now_ms: int, queue_bytes: Mapping[str, int]) -> None:
    """Fill new shards from the store: running tasks whole, those that wait and dead letters by count.  The sessions that hold leases are known as
    restored, and have one lease to come back."""
    ring = Ring(len(shards))
    await _raise_floor(store, shards[0].shared, now_ms)
    after_seq = 0
    ahead: dict[tuple[str, int, str], int] = {}
    while rows := await store.load((RUNNING, WAITING), after_seq, PAGE_ROWS):
        for row in rows:
            task = task_of(row)
            shard = shards[ring.of_id(task.id)]
            shard.restore(task)
            if task.state == RUNNING:
                _restore_consumer(shard, task, now_ms)
                line = (task.queue, task.options.priority, task.options.task_type)
                ahead[line] = max(ahead.get(line, 0), task.position)
        after_seq = rows[-1][0]
    for count in await store.counts():
        if count.state in BY_COUNT:
            shard = shards[ring.of_queue(count.queue)]
            shard.restore_count(count.queue, count.state, count.priority, count.task_type, count.tasks)
    for queue, payload_bytes in queue_bytes.items():
        if payload_bytes:
            shards[ring.of_queue(queue)].restore_size(queue, payload_bytes)
    for (queue, priority, task_type), position in ahead.items():
        await _load_before(store, shards[ring.of_queue(queue)], queue, priority, task_type, position)


async def _raise_floor(store: Store, shared: Shared, now_ms: int) -> None:
    """Ids that look new and may be in the store, or were left out of it, are looked for, now or when their time has come."""
    id_ms = shared.ids.now_ms(now_ms)
    fresh_until_ms = id_ms + FRESH_MS
    last_fresh = fresh_until_ms.to_bytes(6, "big") + bytes([0xFF]) * (ID_BYTES - 6)
    newest = await store.newest_id(last_fresh)
    ahead = await store.ids_after(last_fresh, AHEAD_MAX + 1)
    marks = [ms for ms in (shared.ids.pruned_ms, shared.ids.ahead_ms) if ms <= fresh_until_ms]
    if len(ahead) <= AHEAD_MAX:
        shared.recent.add(ahead, id_ms)
    else:
        marks.append(ms_of_id(await store.newest_id(bytes([0xFF]) * ID_BYTES)))
    shared.recent.raise_floor(max([ms_of_id(newest) if newest else 0, *marks]))


async def _load_before(store: Store, shard: Shard, queue: str, priority: int, task_type: str, position: int) -> None:
    """What waits before a running task of its line was given back, and is hot: the running one may come back too, and every hot position is
    lower than every cold one."""
    waiting = shard.queue(queue)
    line = waiting.line(priority, task_type)
    after_position = 0
    while rows := await store.line(queue, priority, task_type, PENDING, after_position, PAGE_ROWS):
        for task in map(task_of, rows):
            if task.position > position:
                return
            shard.adopt(task)
            waiting.load(line, task)
            after_position = task.position


def _restore_consumer(shard: Shard, task: Task, now_ms: int) -> None:
    deadline_ms = now_ms + shard.limits.lease_ms
    shard.consumers.setdefault(task.session, Consumer(task.session, task.worker, deadline_ms, restored=True))
