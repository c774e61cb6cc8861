"""Recovery: bring the store up to the end of the journal, then load the shards from the store.

There is one way to load, so a start after a crash and a clean one differ only in how much is replayed.  Replay runs the same `evolve` as the
live shard, on a scratch shard that owns all slots; a record that names a task which is not in memory finds its row in the store first.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from taskq.core import records as r
from taskq.core.book import Sequence64, Shared
from taskq.core.consumer import Consumer
from taskq.core.queue import Budget
from taskq.core.ring import Ring
from taskq.core.shard import Shard
from taskq.core.task import FAILED, PENDING, RETRYING, RUNNING, SCHEDULED, WAITING, Task
from taskq.errors import JournalCorrupt, StartError
from taskq.ids import ID_BYTES, split
from taskq.storage.base import PRUNED_ID_MS, Journal, Store, WriteBatch
from taskq.storage.rows import QUEUE_BYTES, SIZES_KEPT, batch_of, decode_record, size_names, task_of

FLUSH_TASKS = 10_000
PAGE_ROWS = 2_000
EPOCH_SHIFT = 40
# the named integer that says how far the last start has brought the store
REPLAYED_LSN = "replayed_lsn"
BY_COUNT = (SCHEDULED, RETRYING, PENDING, FAILED)
UNFINISHED = (SCHEDULED, WAITING, PENDING, RUNNING, RETRYING)


@attrs.frozen
class Recovered:
    """Where the new epoch begins.  `queue_bytes`: the payloads of the unfinished tasks of each queue."""

    epoch: int
    next_lsn: int
    next_seq: int
    pruned_id_ms: int
    replayed: int
    queue_bytes: Mapping[str, int] = attrs.field(factory=dict)


def scratch() -> Shard:
    """A shard that owns all slots and meets nobody."""
    return Shard(0, 1, Shared(Sequence64(1), Sequence64(1), Budget(0), random.Random(0)))


async def recover(store: Store, journal: Journal) -> Recovered:
    """Replay the journal into the store and begin a new epoch in both.  Raises JournalCorrupt, StoreCorrupt, and leaves the files as they are
    then."""
    try:
        return await _recover(store, journal)
    except StartError:
        await store.release()
        raise


async def _recover(store: Store, journal: Journal) -> Recovered:
    meta = await store.open()
    applied_lsn, next_seq, epoch = meta.get("applied_lsn", 0), meta.get("next_seq", 1), meta.get("epoch", 0)
    shard, lsn, replayed = scratch(), applied_lsn, 0
    sizes = await _queue_bytes(store, meta)
    for batch in journal.read(applied_lsn, meta.get(REPLAYED_LSN, 0)):
        epoch = max(epoch, batch.epoch)
        for lsn_of_record, data in enumerate(batch.records, batch.first_lsn):
            if lsn_of_record <= applied_lsn:
                continue
            try:
                record = decode_record(data)
            except ValueError as error:
                raise JournalCorrupt(f"record {lsn_of_record} of the journal: {error}") from error
            await _adopt_missing(store, shard, record)
            shard.replay(record)
            next_seq, lsn, replayed = max(next_seq, _following_seq(record)), lsn_of_record, replayed + 1
        if len(shard.dirty) >= FLUSH_TASKS:
            await store.commit(_flush_of(shard, sizes, {"applied_lsn": lsn, REPLAYED_LSN: lsn, "next_seq": next_seq}))
            shard = scratch()
    epoch += 1
    await store.commit(_flush_of(shard, sizes, {"applied_lsn": lsn, REPLAYED_LSN: lsn, "next_seq": next_seq, "epoch": epoch}))
    if not await store.checkpoint():
        raise StartError("the store is being read by another program, a backup perhaps, and cannot be checked in; start again when that has ended")
    journal.start(epoch, lsn + 1)
    journal.drop(lsn)
    return Recovered(epoch, lsn + 1, next_seq, meta.get(PRUNED_ID_MS, 0), replayed, sizes)


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
    sizes.update(shard.take_sizes())
    return batch_of(shard.take_dirty(), {**meta, **size_names(sizes)})


async def _adopt_missing(store: Store, shard: Shard, record: Any) -> None:
    if type(record) is r.Admitted:
        return
    missing = [task_id for task_id in split(record.ids, ID_BYTES) if task_id not in shard.tasks]
    if missing:
        for row in await store.find(missing, []):
            shard.adopt(task_of(row))


def _following_seq(record: Any) -> int:
    if type(record) is r.Admitted:
        return record.first_seq + len(record.payloads)
    if type(record) is r.Promoted:
        return record.first_position + len(record.ids) // ID_BYTES
    return 0


async def load(store: Store, shards: Sequence[Shard], now_ms: int, queue_bytes: Mapping[str, int]) -> None:
    """Fill new shards from the store: running tasks whole, those that wait and dead letters by count.  The sessions that hold leases are known as
    restored, and have one lease to come back."""
    ring = Ring(len(shards))
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
