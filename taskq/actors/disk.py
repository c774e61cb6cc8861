"""DiskGuard: keeps the broker away from the end of its disk.

    free space   … floor …   new tasks are refused (DISK_LOW); what is there goes on
                 … ballast   the ballast, a file that only takes space, is given up for acks, deletes and checkpoints
                 … 0         the wall: a write fails, and the process stops

It looks a few times a second.  Between two looks every new task is charged with the most that it can take, and what was admitted and is not
written everywhere yet counts as taken: so that the fastest writer stops at the floor, not at the wall.  Near the floor it has journal and store
give back what they can; a second later, if that was not enough, it says how much is short of what should be free, and the store lets finished
tasks go for it.  When there is space again, admission comes back, and then the ballast.

It knows sizes only, not what they are made of.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from taskq.config import AUTO, MIB, show_bytes
from taskq.core.admission import NO_LIMIT, Admission, disk_low
from taskq.errors import DataFolderGone

FLOOR_BYTES, FLOOR_PART = 512 * MIB, 0.1
BALLAST_BYTES, BALLAST_PART = 64 * MIB, 0.02
# admission comes back when there is so much more than the floor, lest it come and go with every task
MARGIN_PART = 0.1
# so much more than the floor should be free, or journal, store and finished tasks give way
NEAR_PART = 0.5
# of the floor so much must be free on the disk itself, however much the store has to spare
OUTSIDE_PART = 0.25
RECLAIM_S = 1.0

log = logging.getLogger("taskq.disk")


class Ballast:
    """The file.  It is whole or not there."""

    def __init__(self, folder: Path, size: int | str) -> None:
        self.path = folder / "ballast"
        self.size = _size(folder, size, BALLAST_BYTES, BALLAST_PART)
        if self.exists and self.path.stat().st_size != self.size:
            self.give_up()

    @property
    def exists(self) -> bool:
        return self.path.exists()

    def give_up(self) -> None:
        self.path.unlink(missing_ok=True)

    def make(self) -> None:
        """Take the space, if it is there; blocks."""
        fresh = self.path.with_suffix(".new")
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.posix_fallocate(fd, 0, self.size)
        except OSError as error:
            log.warning("%s: no ballast of %s could be made: %s", self.path, show_bytes(self.size), error.strerror)
            fresh.unlink()
        else:
            fresh.rename(self.path)
        finally:
            os.close(fd)

    def save_start(self) -> None:
        """Before recovery, which writes: on a full disk the ballast goes first."""
        with suppress(FileNotFoundError):
            self.path.with_suffix(".new").unlink()
        if self.exists and free_bytes(self.path.parent) < self.size:
            log.warning("the disk is full: the ballast of %s is given up for the start", show_bytes(self.size))
            self.give_up()


class DiskGuard:
    """`owed`: what is admitted and will still be written.  `spare`: what the store can take without growing.  `reclaim` has journal and store give
    back what they can, and the store so many bytes more of finished tasks."""

    def __init__(
        self,
        ballast: Ballast,
        floor: int | str,
        admission: Admission,
        owed: Callable[[], int],
        spare: Callable[[], int],
        reclaim: Callable[[int], None],
    ) -> None:
        self.ballast = ballast
        self.floor = _size(ballast.path.parent, floor, FLOOR_BYTES, FLOOR_PART)
        self._admission = admission
        self._owed, self._spare, self._reclaim = owed, spare, reclaim
        self._loop = asyncio.get_running_loop()
        self._reclaim_at_s = 0.0
        self._is_near = False
        self._making: asyncio.Future[None] | None = None

    def look(self) -> None:
        free, owed = free_bytes(self.ballast.path.parent), self._owed()
        if self.floor:
            self._judge(free, owed)
        self._keep_ballast(free, owed)

    def _judge(self, free: int, owed: int) -> None:
        admission = self._admission
        was_low = "disk" in admission.reasons
        room = min(free + self._spare() - self.floor, free - int(self.floor * OUTSIDE_PART)) - owed
        admission.room_bytes = room
        if room <= 0:
            admission.refuse("disk", disk_low())
        elif room > self.floor * MARGIN_PART:
            admission.admit("disk")
        is_low = "disk" in admission.reasons
        if is_low != was_low:
            told = "is refused until there is space" if is_low else "is admitted again"
            log.warning("%s free on the disk, the limit is %s: new work %s", show_mib(free), show_mib(self.floor), told)
        self._keep_away(free, owed)

    def _keep_away(self, free: int, owed: int) -> None:
        """Near the floor, what costs nobody anything goes first.  Finished tasks leave room in the store alone: where the disk itself has none, as
        something else fills it, they would go for nothing."""
        enough = int(self.floor * (1 + NEAR_PART))
        if free - owed > enough:
            self._is_near = False
        elif self._loop.time() >= self._reclaim_at_s:
            self._reclaim_at_s = self._loop.time() + RECLAIM_S
            helps = self._is_near and free - owed > self.floor * OUTSIDE_PART
            self._reclaim(max(0, enough - (free - owed + self._spare())) if helps else 0)
            self._is_near = True

    def _keep_ballast(self, free: int, owed: int) -> None:
        ballast = self.ballast
        if not ballast.size or self._making is not None:
            return
        if ballast.exists:
            if free < ballast.size:
                log.warning("%s free on the disk: the ballast of %s is given up", show_mib(free), show_mib(ballast.size))
                ballast.give_up()
        elif free - owed >= self.floor + 2 * ballast.size:
            self._making = self._loop.run_in_executor(None, ballast.make)
            self._making.add_done_callback(self._made)

    def _made(self, making: asyncio.Future[None]) -> None:
        self._making = None
        if not making.cancelled() and (error := making.exception()) is not None:
            log.warning("no ballast could be made: %s", error)

    async def stop(self) -> None:
        self._admission.room_bytes = NO_LIMIT
        if self._making is not None:
            await asyncio.wait([self._making])


def free_bytes(folder: Path) -> int:
    try:
        found = os.statvfs(folder)
    except FileNotFoundError:
        text = f"the data folder {folder.absolute()} is gone: it was deleted or moved while the broker ran; put it back, or start with another --data"
        raise DataFolderGone(text) from None
    return found.f_bavail * found.f_frsize


def _size(folder: Path, told: int | str, most: int, part: float) -> int:
    """What was told, or what is right for this disk."""
    if told != AUTO:
        return int(told)
    found = os.statvfs(folder)
    return min(most, int(found.f_blocks * found.f_frsize * part))


def show_mib(size: int) -> str:
    return f"{size / MIB:.1f}MiB"
