"""Clocks, handed in wherever time is needed; no core module reads one.

`now_ms` is wall-clock time in Unix milliseconds, for all that is told to people, stored or due.  `steady_ms` began at the same number and
never jumps, for how long something has taken: leases above all, whatever somebody does to the clock of the machine.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    def now_ms(self) -> int: ...

    def steady_ms(self) -> int: ...


class SystemClock:
    """Wall time that never steps back: it starts at the system's wall clock and follows the monotonic clock.

    Every `RESYNC_MS` it looks at the wall clock again.  A forward jump is taken over at once, a backward jump is waited out: time stands
    still until the wall clock has caught up, so due tasks are late, never early.
    """

    RESYNC_MS = 1_000

    def __init__(self) -> None:
        self._began_ns = self._mono_base = time.monotonic_ns()
        self._began_ms = self._wall_base = time.time_ns() // 1_000_000
        self._last = self._wall_base
        self._checked = self._wall_base

    def now_ms(self) -> int:
        now = self._wall_base + (time.monotonic_ns() - self._mono_base) // 1_000_000
        if now - self._checked >= self.RESYNC_MS:
            self._mono_base = time.monotonic_ns()
            self._wall_base = now = time.time_ns() // 1_000_000
            self._checked = now
        if now > self._last:
            self._last = now
        return self._last

    def steady_ms(self) -> int:
        return self._began_ms + (time.monotonic_ns() - self._began_ns) // 1_000_000


class ManualClock:
    """A clock for tests that moves only when told to."""

    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self._now_ms = now_ms

    def now_ms(self) -> int:
        return self._now_ms

    def steady_ms(self) -> int:
        return self._now_ms

    def advance(self, seconds: float) -> None:
        self._now_ms += round(seconds * 1000)
