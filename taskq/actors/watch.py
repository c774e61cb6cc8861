"""Watch: looks at the two things that the process may run out of, its memory and the time of its loop, and refuses enqueues meanwhile.

Where memory is short, tasks that can be in the store alone are to leave it, so that enqueues are refused for as long as that takes, and not until
a restart.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from taskq.config import AUTO, MIB, show_bytes
from taskq.core.admission import RETRY_MS, Admission, Lateness
from taskq.errors import Overloaded

MEMORY_PART = 0.6
# with less than this part of the limit tasks may be in memory again
EASY_PART = 0.8
GIVE_BACK_S = 1.0
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
GROUPS, GROUP_OF_PROCESS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


class Watch:
    """`look` is to be called every `period_s`."""

    def __init__(
        self,
        admission: Admission,
        period_s: float,
        memory_bytes_max: int | str,
        loop_delay_max_s: float,
        tighten: Callable[[bool], None] = lambda tight: None,
    ) -> None:
        self.memory_bytes_max = int(machine_bytes() * MEMORY_PART) // MIB * MIB if memory_bytes_max == AUTO else int(memory_bytes_max)
        self._admission = admission
        self._period_s = period_s
        self._lateness = Lateness(1000 * loop_delay_max_s)
        self._loop = asyncio.get_running_loop()
        self._looked_s = self._loop.time()
        self._give_back_s = 0.0
        self._used = 0
        self._tighten = tighten

    def look(self) -> None:
        now_s = self._loop.time()
        late_s, self._looked_s = now_s - self._looked_s - self._period_s, now_s
        self._admission.set("loop", self._lateness.turn(1000 * late_s, 1000 * now_s))
        if self.memory_bytes_max:
            self._admission.set("memory", self._memory(now_s))

    def _memory(self, now_s: float) -> Overloaded | None:
        used = self._resident_bytes()
        if used > self.memory_bytes_max and now_s >= self._give_back_s:
            self._give_back_s = now_s + GIVE_BACK_S
            self._tighten(True)
            give_back()
            used = self._resident_bytes()
        elif used < self.memory_bytes_max * EASY_PART:
            self._tighten(False)
        if used <= self.memory_bytes_max:
            return None
        told = f"the broker uses {used // MIB}MiB of memory, its limit is {show_bytes(self.memory_bytes_max)} (memory_bytes_max); retry later"
        return Overloaded(told, retry_after_ms=RETRY_MS)

    def _resident_bytes(self) -> int:
        """As when it was last seen, if it cannot be seen now for want of open files."""
        with suppress(OSError):
            self._used = resident_bytes()
        return self._used


def resident_bytes() -> int:
    """The memory of this process."""
    statm = os.open("/proc/self/statm", os.O_RDONLY)  # ten times a second, also where nothing else happens: a Path would cost four times as much
    try:
        return int(os.read(statm, 256).split()[1]) * PAGE_BYTES
    finally:
        os.close(statm)


def give_back() -> None:
    """What was freed inside the process goes back to the system: the C library keeps it else, and would seem to be full for ever."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def machine_bytes() -> int:
    """The memory that this process may have: the machine's, or less in a container, a service with a limit or another control group."""
    of_process = GROUP_OF_PROCESS.read_text() if GROUP_OF_PROCESS.is_file() else ""
    return min([os.sysconf("SC_PHYS_PAGES") * PAGE_BYTES, *group_limits(of_process, GROUPS)])


def group_limits(of_process: str, groups: Path) -> list[int]:
    """The limits of memory in bytes of a process's control groups and of all above them, of version 2 and 1; `of_process` is its
    /proc/PID/cgroup, see cgroups(7).  Inside a container the path may be that of the host, and only the top of the tree be there."""
    files = [groups / "memory.max", groups / "memory" / "memory.limit_in_bytes"]
    for number, controllers, path in (line.split(":", 2) for line in of_process.splitlines()):
        if number == "0" or "memory" in controllers.split(","):
            top = files[0] if number == "0" else files[1]
            names = path.strip("/").split("/")
            files += [top.parent.joinpath(*names[: depth + 1], top.name) for depth in range(len(names)) if ".." not in names]
    texts = [file.read_text().strip() for file in files if file.is_file()]
    return [int(text) for text in texts if text.isdecimal()]
