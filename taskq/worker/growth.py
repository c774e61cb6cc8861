"""Memory follows what runs: cycles are collected when the process has grown.

An exception that was caught and kept knows the frame that caught it, and with it all that the function had; asyncio itself leaves such cycles behind
(`wait_for`, `TaskGroup`).  Python collects them by the number of its objects, which says nothing of their size, and seldom, as the runner wants it
(`GC_THRESHOLDS`).  So the runner looks at its size after each turn in which something ended, and a child of the process pool after each task.  What
the C library keeps for later is given back too.
"""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable

STEP_BYTES = 32 << 20
STATM = "/proc/self/statm"
STATM_BYTES = 128


def resident_meter() -> Callable[[], int]:
    """Tells how many bytes of memory the process has; 0 where nobody can say."""
    try:
        fd = os.open(STATM, os.O_RDONLY | os.O_CLOEXEC)
        page_bytes = os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return lambda: 0
    return lambda: int(os.pread(fd, STATM_BYTES, 0).split()[1]) * page_bytes


def collect(generation: int) -> None:
    gc.collect(generation)
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class Growth:
    """`floor`: the size after the last full collection.  `step`: how much more is a reason for the next one; what only grows since it is needed
    is looked at less and less often."""

    def __init__(self, resident: Callable[[], int], collect: Callable[[int], object] = collect) -> None:
        self._resident = resident
        self._collect = collect
        self._floor = resident()
        self._step = STEP_BYTES

    def check(self) -> None:
        size = self._resident()
        if size < self._floor:
            self._floor = size
        elif size - self._floor >= self._step:
            self._shrink(size)

    def _shrink(self, size: int) -> None:
        """The young objects first: nearly all garbage is among them, and few of what lives."""
        self._collect(0)
        if self._resident() - self._floor < self._step // 2:
            return
        self._collect(2)
        left = self._resident()
        in_vain = 2 * (size - left) < size - self._floor
        self._step = min(2 * self._step, max(STEP_BYTES, left // 4)) if in_vain else STEP_BYTES
        self._floor = left
