"""JournalActor: group commit.  All records of this moment go out in one write and one fdatasync, in a thread of its own; whatever piles up
meanwhile is the next batch.  Replies leave in order, when every record up to their own has reached the level of the broker.

Any error of the disk leaves the outcome unknown, so it stops the process.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from taskq.core.admission import Admission
from taskq.core.effects import Reply
from taskq.core.messages import FSYNC, MEMORY, Error
from taskq.errors import Overloaded
from taskq.storage.base import Journal
from taskq.storage.rows import encode_record

SYNC_S = 1.0
Buffers = list[bytes | memoryview]


def _is_refusal(message: Any) -> bool:
    return type(message) is Error and message.retryable


class JournalActor:
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        on_crash: Callable[[BaseException], None],
        journal: Journal,
        level: int,
        next_lsn: int,
        admission: Admission,
        backlog_bytes_max: int,
        deliver: Callable[[list[Reply]], None],
        delay_max_s: float = 0.5,
    ) -> None:
        self.loop = loop
        self.last_lsn = next_lsn - 1
        self.written_lsn = self.synced_lsn = self.last_lsn
        self._on_crash = on_crash
        self._journal = journal
        self._level = level
        self._admission = admission
        self._backlog_bytes_max = backlog_bytes_max
        self._deliver = deliver
        self._delay_max_s = delay_max_s
        self.bytes_submitted = self.bytes_written = 0
        self._began_s = 0.0
        self._refusals: list[Reply] = []
        self._records: list[Buffers] = []
        self._first_lsn = next_lsn
        self._bytes = 0
        self._replies: deque[tuple[int, list[Reply]]] = deque()
        self._synced_waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._crash: BaseException | None = None
        self._busy = self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="taskq-journal", daemon=True)
        self._thread.start()

    def submit(self, records: list[Any], replies: list[Reply]) -> None:
        """Records get their LSNs in the order of the calls; the replies wait for them and for all before, but for refusals that change nothing
        and depend on nothing: who is told to come back later is told now."""
        for record in records:
            buffers = encode_record(record)
            size = sum(map(len, buffers))
            self._bytes += size
            self.bytes_submitted += size
            self._records.append(buffers)
        self.last_lsn += len(records)
        if refusals := [reply for reply in replies if _is_refusal(reply.message)]:
            self._refusals += refusals
            replies = [reply for reply in replies if not _is_refusal(reply.message)]
        if replies:
            self._replies.append((self.last_lsn, replies))
        if not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        if self._records and not self._busy:
            self._write()
        self.look()
        self._release()

    def look(self) -> None:
        """Is the disk too slow for what comes?"""
        slow = self._busy and self.loop.time() - self._began_s > self._delay_max_s
        if slow or self._bytes > self._backlog_bytes_max:
            self._admission.refuse("journal", Overloaded("the disk is slow, and the journal behind; retry later", retry_after_ms=500))
        else:
            self._admission.admit("journal")

    def _write(self) -> None:
        first_lsn, records = self._first_lsn, self._records
        last_lsn = first_lsn + len(records) - 1
        self._records, self._first_lsn, self._bytes = [], last_lsn + 1, 0
        self._busy, self._began_s = True, self.loop.time()
        end = self.bytes_submitted
        self._jobs.put(lambda: self._commit(first_lsn, last_lsn, end, records))

    def _commit(self, first_lsn: int, last_lsn: int, end: int, records: list[Buffers]) -> None:
        """In the thread."""
        self._journal.write(first_lsn, records)
        if self._level == FSYNC:
            self._journal.sync()
        self.loop.call_soon_threadsafe(self._done, last_lsn, end, self._level == FSYNC)

    def _done(self, last_lsn: int, end: int, synced: bool) -> None:
        self._busy = False
        self.bytes_written = end
        self.written_lsn = max(self.written_lsn, last_lsn)
        if synced:
            self._synced(last_lsn)
        elif self._timer is None:
            self._timer = self.loop.call_later(SYNC_S, self._sync)
        if self._records:
            self._write()
        self.look()
        self._release()

    def _release(self) -> None:
        reached = self.synced_lsn if self._level == FSYNC else self.last_lsn if self._level == MEMORY else self.written_lsn
        leaving, self._refusals = self._refusals, []
        while self._replies and self._replies[0][0] <= reached:
            leaving += self._replies.popleft()[1]
        if leaving:
            self._hand_over(leaving)

    def _hand_over(self, replies: list[Reply]) -> None:
        try:
            self._deliver(replies)
        except BaseException as crash:
            self._on_crash(crash)
            raise

    # ---- sync on demand, for the store and for the weaker levels -----------------------------------------------------------------------

    def _sync(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        lsn = self.written_lsn
        if lsn > self.synced_lsn:
            self._jobs.put(lambda: self._sync_to(lsn))

    def _sync_to(self, lsn: int) -> None:
        """In the thread."""
        self._journal.sync()
        self.loop.call_soon_threadsafe(self._synced, lsn)

    def _synced(self, lsn: int) -> None:
        self.synced_lsn = max(self.synced_lsn, lsn)
        for waiting_lsn, future in self._synced_waiters:
            if waiting_lsn <= self.synced_lsn and not future.done():
                future.set_result(None)
        self._synced_waiters = [entry for entry in self._synced_waiters if not entry[1].done()]

    async def synced(self, lsn: int) -> None:
        """Until all records up to this LSN survive power loss.  Raises the error of the disk if they never will."""
        while self.synced_lsn < lsn:
            if self._crash is not None:
                raise self._crash
            future = self.loop.create_future()
            self._synced_waiters.append((lsn if self.written_lsn >= lsn else self.written_lsn + 1, future))
            if self._level != FSYNC:
                self._sync() if self.written_lsn >= lsn else self.loop.call_later(0.005, self._sync)
            await future

    def roll(self) -> None:
        """Begin a new file, so that the one before can be dropped."""
        self._jobs.put(self._journal.roll)

    def drop(self, applied_lsn: int) -> None:
        """The store has everything up to here."""
        self._jobs.put(lambda: self._journal.drop(applied_lsn))

    # ---- the thread ------------------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except BaseException as crash:
                self.loop.call_soon_threadsafe(self._failed, crash)
                return

    def _failed(self, crash: BaseException) -> None:
        """The thread has ended: nothing will be synced any more."""
        self._crash = crash
        self._on_crash(crash)
        for _, future in self._synced_waiters:
            if not future.done():
                future.set_exception(crash)
        self._synced_waiters.clear()

    async def stop(self, *, empty: bool) -> None:
        """Write and sync what is left, then close; `empty` removes the segments, because the store has everything.  Raises the error of the
        disk, and has let go of the files then."""
        try:
            await self.synced(self.last_lsn)
        except BaseException:
            await self.abandon()
            raise
        if self._timer is not None:
            self._timer.cancel()
        self._release()
        self._jobs.put(None)
        await self.loop.run_in_executor(None, self._thread.join)
        self._journal.close(empty=empty)

    async def abandon(self) -> None:
        """After a crash: write nothing but what the thread was given already, and leave the files as they are."""
        if self._timer is not None:
            self._timer.cancel()
        self._replies.clear()
        self._jobs.put(None)
        await self.loop.run_in_executor(None, self._thread.join)
        self._journal.release()
