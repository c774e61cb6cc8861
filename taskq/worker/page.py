"""The page of memory that runner and keeper share: three numbers of 8 bytes that are readable while the runner's GIL is held.

    0 received    deliveries read since the session began; written before the first of them is started
    1 step        monotonic ns until which the task that is on the loop now may hold it, 0: no limit
    2 threads     the earliest such time of the tasks in threads, 0: no limit

One writer, one reader; an aligned store of 8 bytes is whole on every machine that Python runs on.
"""

from __future__ import annotations

import mmap
import os
import tempfile

PAGE_BYTES = 24
RECEIVED, STEP, THREADS = 0, 1, 2


class Page:
    """The shared numbers.  `fd` is handed to the other process, which opens the same page with `Page(fd)`."""

    def __init__(self, fd: int | None = None) -> None:
        self.fd = _anonymous() if fd is None else fd
        self._map = mmap.mmap(self.fd, PAGE_BYTES)
        self.cells = memoryview(self._map).cast("Q")

    @property
    def received(self) -> int:
        return self.cells[RECEIVED]

    @received.setter
    def received(self, value: int) -> None:
        self.cells[RECEIVED] = value

    def overdue(self, now_ns: int) -> bool:
        """A task holds the loop or the GIL beyond its hard deadline."""
        return any(0 < self.cells[cell] < now_ns for cell in (STEP, THREADS))

    def clear(self) -> None:
        for cell in (RECEIVED, STEP, THREADS):
            self.cells[cell] = 0

    def part(self) -> None:
        """Let go of the shared page (`fd` stays), and write on one that nobody reads."""
        self.cells.release()
        self._map.close()
        self.cells = memoryview(bytearray(PAGE_BYTES)).cast("Q")

    def close(self) -> None:
        self.cells.release()
        self._map.close()
        os.close(self.fd)


def _anonymous() -> int:
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("taskq-worker")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.truncate(fd, PAGE_BYTES)
    return fd
