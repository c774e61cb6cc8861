"""Clocks, handed in wherever time is needed.  Times are wall-clock Unix milliseconds (`now_ms`); no core module reads a clock."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    def now_ms(self) -> int: ...


class SystemClock:
    """Wall time that never steps back: it starts at the system's wall clock and follows the monotonic clock.

    Every `RESYNC_MS` it looks at the wall clock again.  A forward jump is taken over at once, a backward jump is waited out: time stands
    still until the wall clock has caught up, so due tasks are late, never early.
    """

    RESYNC_MS = 1_000

    def __init__(self) -> None:
        self._mono_base = time.monotonic_ns()
        self._wall_base = time.time_ns() // 1_000_000
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


class ManualClock:
    """A clock for tests that moves only when told to."""

    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self._now_ms = now_ms

    def now_ms(self) -> int:
        return self._now_ms

    def advance(self, seconds: float) -> None:
        self._now_ms += round(seconds * 1000)
