"""Watch: looks at the two things that the process may run out of, its memory and the time of its loop, and refuses enqueues meanwhile."""

from __future__ import annotations

import asyncio
import ctypes
import os
from pathlib import Path

from taskq.config import AUTO, MIB, show_bytes
from taskq.core.admission import RETRY_MS, Admission, Lateness
from taskq.errors import Overloaded

MEMORY_PART = 0.6
MEMORY_S = 1.0
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
# where containers are told their limit, in version 2 and 1 of control groups; a number, or "max"
CGROUP_FILES = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


class Watch:
    """`look` is to be called every `period_s`."""

    def __init__(self, admission: Admission, period_s: float, memory_bytes_max: int | str, loop_delay_max_s: float) -> None:
        self.memory_bytes_max = int(machine_bytes() * MEMORY_PART) if memory_bytes_max == AUTO else int(memory_bytes_max)
        self._admission = admission
        self._period_s = period_s
        self._lateness = Lateness(1000 * loop_delay_max_s)
        self._loop = asyncio.get_running_loop()
        self._looked_s = self._loop.time()
        self._memory_at_s = 0.0

    def look(self) -> None:
        now_s = self._loop.time()
        late_s, self._looked_s = now_s - self._looked_s - self._period_s, now_s
        self._admission.set("loop", self._lateness.turn(1000 * late_s, 1000 * now_s))
        if self.memory_bytes_max and now_s >= self._memory_at_s:
            self._memory_at_s = now_s + MEMORY_S
            self._admission.set("memory", self._memory())

    def _memory(self) -> Overloaded | None:
        if resident_bytes() <= self.memory_bytes_max:
            return None
        give_back()
        if (used := resident_bytes()) <= self.memory_bytes_max:
            return None
        told = f"the broker uses {used // MIB}MiB of memory, its limit is {show_bytes(self.memory_bytes_max)} (memory_bytes_max); retry later"
        return Overloaded(told, retry_after_ms=RETRY_MS)


def resident_bytes() -> int:
    """The memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


def give_back() -> None:
    """What was freed inside the process goes back to the system: the C library keeps it else, and would seem to be full for ever."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def machine_bytes() -> int:
    """The memory that this process may have: the machine's, or less in a container."""
    limits = [file.read_text().strip() for file in CGROUP_FILES if file.is_file()]
    return min([os.sysconf("SC_PHYS_PAGES") * PAGE_BYTES, *(int(text) for text in limits if text.isdecimal())])
