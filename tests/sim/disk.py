"""The disk of a broker: what is written survives a kill, what is synced survives power loss.  And the ways in which a process dies at it.

A *failpoint* is a place before or after a step (write, sync, commit, …).  The fault that is armed for it strikes when the process gets there:
the process is dead at once, or the disk answers with an error whose outcome is unknown.  A disk may also be full.
"""

from __future__ import annotations

import asyncio
import errno
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from sim.files import STEPS, Folder, Killed, SimPath
from sim.loop import VirtualLoop

from taskq.storage.base import Pruned, Retention, WriteBatch
from taskq.storage.memory import Contents, MemoryStore

FAILPOINTS = (*(f"{when} {step}" for step in (*STEPS, "commit") for when in ("before", "after")), "in write")
# those of a broker at work are met at once, the others by a start, a new segment or a flush
OFTEN = ("before write", "in write", "after write", "before sync", "after sync", "before commit", "after commit")
# a fast disk, and a slow one
STEPS_S = ((0.0002, 0.01), (0.01, 0.15))
SLOW_S = (0.1, 1.0)
COMMIT_BYTES = 512


class Disk:
    """The state that outlives a process.  `armed` is the failpoint at which `strike` is called next; `room` what fits on it, if it is full soon."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.step_s = rng.choice(STEPS_S)
        self.contents = Contents()
        self.folder = Folder(self)
        self.armed = ""
        self.error_instead = False
        self.room: int | None = None
        self.strike: Callable[[str], None] = lambda where: None
        self.on_fault: Callable[[], None] = lambda: None

    @property
    def path(self) -> SimPath:
        return SimPath(self.folder)

    @property
    def applied_lsn(self) -> int:
        return self.contents.meta.get("applied_lsn", 0)

    @property
    def end_lsn(self) -> int:
        """Up to where a start would know everything."""
        return self.folder.end_lsn(self.applied_lsn)

    @property
    def durable_lsn(self) -> int:
        """The same after the worst power loss."""
        return self.folder.end_lsn(self.applied_lsn, durable=True)

    def crash(self, power: bool) -> None:
        self.folder = self.folder.crash(power, self.rng)

    def take_room(self, size: int) -> int:
        """How many of these bytes fit; an error if none does."""
        if self.room is None:
            return size
        taken = min(size, self.room)
        self.room -= taken
        if not taken:
            self.on_fault()
            raise OSError(errno.ENOSPC, "no space left on device")
        return taken

    def reached(self, where: str) -> None:
        if self.armed != where:
            return
        self.armed = ""
        if self.error_instead:
            self.on_fault()
            raise OSError(errno.EIO, f"input/output error {where}")
        self.strike(where)
        raise Killed(where)

    def duration(self) -> float:
        return self.rng.uniform(*(SLOW_S if self.rng.random() < 0.03 else self.step_s))


class SimStore(MemoryStore):
    """The store as one process sees it: every call takes a while, and a commit must not run ahead of the journal."""

    def __init__(self, disk: Disk, on_prune: Callable[[list[bytes]], None], on_wrong: Callable[[str], None]) -> None:
        super().__init__(disk.contents)
        self._disk, self._on_prune, self._on_wrong = disk, on_prune, on_wrong
        self.recovered = False

    async def commit(self, batch: WriteBatch) -> None:
        await self._pass("before commit")
        applied_lsn, disk = batch.meta.get("applied_lsn", 0), self._disk
        if self.recovered and applied_lsn > (durable_lsn := disk.durable_lsn):
            self._on_wrong(f"a commit takes records up to {applied_lsn}, the journal is synced up to {durable_lsn}")
        if disk.room is not None and disk.room < COMMIT_BYTES:
            disk.take_room(0)
        await super().commit(batch)
        await self._pass("after commit")

    async def find(self, ids: Sequence[bytes], keys: Sequence[tuple[str, str]]) -> list[Any]:
        await asyncio.sleep(self._disk.duration())
        return await super().find(ids, keys)

    async def line(self, *args: Any) -> list[Any]:
        await asyncio.sleep(self._disk.duration())
        return await super().line(*args)

    async def due(self, *args: Any) -> list[Any]:
        await asyncio.sleep(self._disk.duration())
        return await super().due(*args)

    async def prune(self, retention: Retention) -> Pruned:
        await asyncio.sleep(self._disk.duration())
        before = self._ids()
        pruned = await super().prune(retention)
        after = self._ids()
        self._on_prune([task_id for task_id in before if task_id not in after])
        return pruned

    def _ids(self) -> dict[bytes, None]:
        return dict.fromkeys(row[1] for row in (*self.contents.tasks.values(), *self.contents.finished))

    async def _pass(self, where: str) -> None:
        await asyncio.sleep(self._disk.duration())
        try:
            self._disk.reached(where)
        except Killed:
            await asyncio.get_running_loop().create_future()


class DiskThread:
    """In the place of the journal's thread and its queue: one job at a time, each after a while."""

    def __init__(self, loop: VirtualLoop, disk: Disk, on_crash: Callable[[BaseException], None]) -> None:
        self._loop, self._disk, self._on_crash = loop, disk, on_crash
        self._jobs: deque[Callable[[], None] | None] = deque()
        self._busy = self._dead = False

    def put(self, job: Callable[[], None] | None) -> None:
        self._jobs.append(job)
        self._next()

    def join(self) -> None:
        while self._jobs and not self._dead:
            self._do(self._jobs.popleft())

    def _next(self) -> None:
        if self._jobs and not self._busy and not self._dead:
            self._busy = True
            self._loop.call_later(self._disk.duration(), self._turn)

    def _turn(self) -> None:
        self._busy = False
        if self._jobs:
            self._do(self._jobs.popleft())
        self._next()

    def _do(self, job: Callable[[], None] | None) -> None:
        try:
            if job is not None:
                job()
        except Killed:
            self._dead = True
        except BaseException as crash:
            self._dead = True
            self._loop.call_soon_threadsafe(self._on_crash, crash)
