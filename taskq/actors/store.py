"""StoreActor: writes behind the journal, and answers the shards' questions to the store.

It owns the order on the store: loads and flushes pass one by one, so no answer is older than a flush that a shard has seen.  A flush takes
the tasks whose rows are behind as they are at one moment, waits until the journal is synced up to that moment, and commits them with its LSN.
Their rows are made in slices between the turns of the loop; a task that is about to change meanwhile has its row made first.

Finished tasks are pruned when their retention has passed, and before that if the disk is nearly full: the oldest first, a few at a time, but none
that ended just now.

A flush comes each FLUSH_S, or as soon as FLUSH_TASKS are behind: a task that comes and goes between two flushes costs the store one row
instead of three.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import attrs

from taskq.actors.journal import JournalActor
from taskq.actors.shard import ShardActor
from taskq.clock import Clock
from taskq.core.admission import TASK_DISK_BYTES, WRITES
from taskq.core.book import EVERYTHING, Book, Shared
from taskq.core.effects import Command, DueLoaded, FindLoad, Flushed, Forgotten, Found, LineLoad, LineLoaded
from taskq.core.horizon import NEAR_TASKS, is_crowded, narrow, page_tasks, runs_short
from taskq.core.idtime import FRESH_MS
from taskq.core.messages import Get
from taskq.core.ring import Ring
from taskq.core.task import PENDING, TAKEN, Task
from taskq.core.window import spill
from taskq.errors import Overloaded
from taskq.storage.base import COLUMNS, Retention, Store, WriteBatch
from taskq.storage.rows import add, size_names, task_of

FLUSH_S = 2.0
FLUSH_TASKS = 100_000
SLICE_TASKS = 500
DIRTY_TASKS_MAX = 200_000
PRUNE_S = 10.0
# a finished task is there for so long at least, that its result can be fetched
SHED_AGE_MS = 5_000
SHED_TASKS = 64
SHED_TOLD_S = 60.0
# so many ids and keys are looked up at once
FIND_NAMES = 2_000
ID = COLUMNS.index("id")

log = logging.getLogger("taskq.store")


class StoreActor:
    def __init__(
        self,
        on_crash: Callable[[BaseException], None],
        store: Store,
        journal: JournalActor,
        shards: list[ShardActor],
        shared: Shared,
        clock: Clock,
        retention: Callable[[int], Retention],
        backlog_bytes_max: int = 256 << 20,
    ) -> None:
        self._on_crash = on_crash
        self._store = store
        self._journal = journal
        self._shards = shards
        self._shared = shared
        self._clock = clock
        self._retention = retention
        self._ring = Ring(len(shards))
        self._loads: deque[tuple[ShardActor, FindLoad | LineLoad]] = deque()
        self._wake = asyncio.Event()
        self._stopping = self._reclaiming = self._spilling = False
        self._bytes_max = backlog_bytes_max
        self._taken_tasks = 0
        self._flushed_bytes = journal.bytes_submitted
        self.spare_bytes = self._short_bytes = self._shed_tasks = 0
        self._shed_told_s = -SHED_TOLD_S
        self.flushed_lsn = journal.last_lsn
        self._loop = asyncio.get_running_loop()
        self._next_prune = self._loop.time()
        self._books: list[Book] = [actor.shard for actor in shards]
        self._page_tasks = NEAR_TASKS
        if self._is_to_look_ahead():
            self._wake.set()
        self._task = self._loop.create_task(self._run(), name="taskq-store")

    def load(self, shard: ShardActor, loads: list[FindLoad | LineLoad]) -> None:
        self._loads.extend((shard, load) for load in loads)
        self._wake.set()

    def look(self) -> None:
        """Called a few times a second: is there something to flush or to prune, is the backlog too long?"""
        dirty = self._dirty_tasks()
        if dirty > DIRTY_TASKS_MAX or self._unflushed_bytes() > self._bytes_max:
            self._shared.admission.refuse("store", Overloaded("the store is behind; retry later", retry_after_ms=500))
        else:
            self._shared.admission.admit("store")
        if dirty or self._loop.time() >= self._next_prune or self._is_to_look_ahead():
            self._wake.set()

    def reclaim(self, short_bytes: int = 0) -> None:
        """The disk is nearly full: give back what can be given back, soon, and let finished tasks go for so many bytes more."""
        self._reclaiming, self._short_bytes = True, short_bytes
        self._wake.set()

    def spill(self) -> None:
        """Memory is short: what can be in the store alone leaves it, soon."""
        self._spilling = True
        self._wake.set()

    def owed_bytes(self) -> int:
        """What was admitted and will still take space, at most: in the journal, in the log of the store, in the store."""
        unwritten, unflushed = self._journal.bytes_submitted - self._journal.bytes_written, self._unflushed_bytes()
        tasks = self._dirty_tasks() + self._taken_tasks
        return unwritten + (WRITES - 1) * unflushed + tasks * TASK_DISK_BYTES + self._store.log_bytes()

    def _unflushed_bytes(self) -> int:
        return self._journal.bytes_submitted - self._flushed_bytes

    async def _run(self) -> None:
        loop = self._loop
        next_flush = loop.time()
        try:
            while not self._stopping:
                await self._wake.wait()
                self._wake.clear()
                await self._answer_loads()
                await self._look_ahead()
                if self._spilling:
                    self._spill()
                    next_flush = loop.time()
                if loop.time() >= next_flush or self._dirty_tasks() >= FLUSH_TASKS:
                    await self._flush()
                    next_flush = loop.time() + FLUSH_S
                if self._reclaiming:
                    await self._give_back()
                    await self._shed()
                if loop.time() >= self._next_prune:
                    await self._prune()
                    self._next_prune = loop.time() + PRUNE_S
            await self._answer_loads()
            await self._flush()
        except BaseException as crash:
            self._on_crash(crash)
            raise

    def _dirty_tasks(self) -> int:
        return sum(len(actor.shard.dirty) for actor in self._shards)

    # ---- loads -----------------------------------------------------------------------------------------------------------------------

    async def _answer_loads(self) -> None:
        """Those that were asked until now: a flush must not wait for ever while lines are drained."""
        asked, self._loads = self._loads, deque()
        while asked:
            actor, load = asked.popleft()
            if isinstance(load, LineLoad):
                await self._line(actor, load)
                continue
            finds = [(actor, load)]
            names = _names(load)
            while asked and isinstance(other := asked[0][1], FindLoad) and (names := names + _names(other)) <= FIND_NAMES:
                finds.append((asked.popleft()[0], other))
            await self._find(finds)

    async def _find(self, finds: list[tuple[ShardActor, FindLoad]]) -> None:
        ids = {task_id for _, load in finds for task_id in load.ids}
        keys = {key for _, load in finds for key in load.keys}
        shown = {load.parked.message.id for _, load in finds if type(load.parked.message) is Get}
        tasks = [task_of(row, whole=row[ID] in shown) for row in await self._store.find(list(ids), list(keys))]
        by_name: dict[Any, Task] = {task.id: task for task in tasks}
        by_name.update({(task.queue, task.key): task for task in tasks if task.key is not None})
        for actor, load in finds:
            found = {id(task): task for name in (*load.ids, *load.keys) if (task := by_name.get(name)) is not None}
            actor.tell(Command(0, 0, Found(load.parked, list(found.values()))))

    async def _line(self, actor: ShardActor, load: LineLoad) -> None:
        """Cold tasks that are not in the store yet stand behind all that are: only when there are none of these, a flush is needed first."""
        wanted = load.queue, load.priority, load.task_type, PENDING, load.after_position, load.limit
        rows = await self._store.line(*wanted)
        if not rows:
            await self._flush()
            rows = await self._store.line(*wanted)
        for begin in range(0, max(1, len(rows)), SLICE_TASKS):
            tasks = [task_of(row) for row in rows[begin : begin + SLICE_TASKS]]
            actor.tell(Command(0, 0, LineLoaded(load, tasks, begin + SLICE_TASKS < len(rows))))
            await asyncio.sleep(0)

    def _is_to_look_ahead(self) -> bool:
        books, page = self._books, self._page_tasks
        return not any(book.is_loading_due for book in books) and (runs_short(books, page) or is_crowded(books, page))

    async def _look_ahead(self) -> None:
        """Load the timed tasks that come due next, if some are not in memory; if too many are, leave the far ones of them to the store."""
        if not self._is_to_look_ahead():
            return
        limit = self._page_tasks = page_tasks(self._books)
        if is_crowded(self._books, limit):
            for book in self._books:
                narrow(book, (self._clock.now_ms(), 0))
            await self._flush()
        for book in self._books:
            book.is_loading_due = True
        after = min(book.horizon for book in self._books)
        rows = await self._store.due(*after, limit)
        tasks: list[Task] = []
        for begin in range(0, len(rows), SLICE_TASKS):
            piece = [task_of(row) for row in rows[begin : begin + SLICE_TASKS]]
            self._tell_due(piece, None)
            tasks = piece or tasks
            await asyncio.sleep(0)
        self._tell_due([], EVERYTHING if len(rows) < limit else (tasks[-1].due_ms, tasks[-1].seq))

    def _tell_due(self, tasks: list[Task], horizon: tuple[int, int] | None) -> None:
        for index, actor in enumerate(self._shards):
            own = [task for task in tasks if self._ring.of_id(task.id) == index]
            if own or horizon is not None:
                actor.tell(Command(0, 0, DueLoaded(own, horizon)))

    # ---- write-behind ----------------------------------------------------------------------------------------------------------------

    async def _flush(self) -> None:
        taken = [(actor, actor.shard.take_dirty(), actor.shard.flushes) for actor in self._shards]
        lsn = self._journal.last_lsn
        tasks = [task for _, dirty, _ in taken for task in dirty]
        if not tasks and lsn == self.flushed_lsn:
            return
        sizes = {name: size for actor in self._shards for name, size in actor.shard.take_sizes().items()}
        batch = WriteBatch({"applied_lsn": lsn, "next_seq": self._shared.sequence.following, **size_names(sizes)})
        submitted, self._taken_tasks = self._journal.bytes_submitted, len(tasks)
        await self._make_rows(batch, tasks)
        await self._journal.synced(lsn)
        await self._store.commit(batch)
        self.flushed_lsn, self._flushed_bytes, self._taken_tasks = lsn, submitted, 0
        for actor, dirty, flush in taken:
            for begin in range(0, len(dirty), SLICE_TASKS):
                actor.tell(Command(0, 0, Flushed(dirty[begin : begin + SLICE_TASKS], flush)))
        self._journal.drop(lsn)

    def _spill(self) -> None:
        self._spilling = False
        for book in self._books:
            spill(book)

    async def _give_back(self) -> None:
        """Once the store has everything, the journal needs no file but the newest, and the log of the store can be emptied."""
        self._reclaiming = False
        self._journal.roll()
        await self._flush()
        self._journal.drop(self.flushed_lsn)
        self.spare_bytes = await self._store.shrink()

    async def _make_rows(self, batch: WriteBatch, tasks: list[Task]) -> None:
        self._shared.before_change, outside_of_flush = partial(add, batch), self._shared.before_change
        for begin in range(0, len(tasks), SLICE_TASKS):
            for task in tasks[begin : begin + SLICE_TASKS]:
                if task.dirty == TAKEN:
                    add(batch, task)
            await asyncio.sleep(0)
        self._shared.before_change = outside_of_flush

    async def _prune(self) -> None:
        retention = self._retention(self._clock.now_ms())
        while await self._forget(retention) >= retention.rows_max:
            if self._stopping or self._loads or self._dirty_tasks() >= FLUSH_TASKS:
                break

    async def _shed(self) -> None:
        """Let the oldest finished tasks go until the store can take what is short, or none is left but the youngest.  The steps follow what the
        last one freed, so that not many more go than must."""
        short, self._short_bytes = self._short_bytes, 0
        wanted, step = self.spare_bytes + short, SHED_TASKS
        while self.spare_bytes < wanted and self._dirty_tasks() < FLUSH_TASKS and not self._stopping:
            now_ms, before = self._clock.now_ms(), self.spare_bytes
            retention = self._retention(now_ms)
            before_ms = max(retention.finished_before_ms, now_ms - SHED_AGE_MS)
            rows = await self._forget(attrs.evolve(retention, finished_before_ms=before_ms, rows_max=step))
            if not rows:
                break
            self._shed_tasks += rows
            self.spare_bytes = await self._store.shrink()
            step = min(retention.rows_max, max(1, rows * (wanted - self.spare_bytes) // max(1, self.spare_bytes - before)))
            await self._answer_loads()
        self._tell_shed()

    def _tell_shed(self) -> None:
        """In the log, once in a while."""
        if self._shed_tasks and self._loop.time() >= self._shed_told_s + SHED_TOLD_S:
            log.warning("the disk is nearly full: %d finished tasks were dropped before their retention had passed", self._shed_tasks)
            self._shed_tasks, self._shed_told_s = 0, self._loop.time()

    async def _forget(self, retention: Retention) -> int:
        """Delete what the retention allows, in one step, and remember what must be of it; how many rows it were."""
        ids = self._shared.ids
        ids_until_ms = ids.now_ms(self._clock.steady_ms()) + FRESH_MS
        pruned = await self._store.prune(attrs.evolve(retention, ids_until_ms=ids_until_ms))
        ids.note_pruned(pruned.id_ms_max, pruned.ahead_ms_max)
        for queue, tasks in pruned.failed:
            self._shards[self._ring.of_queue(queue)].tell(Command(0, 0, Forgotten(queue, tasks)))
        return pruned.rows

    async def stop(self) -> None:
        """Flush everything."""
        self._stopping = True
        self._wake.set()
        await self._task
        await self._store.checkpoint()  # one that a reader blocks is made by the next start

    async def abandon(self) -> None:
        """After a crash: touch nothing more."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def _names(load: FindLoad) -> int:
    return len(load.ids) + len(load.keys)
