"""Slices: the time of the loop that the connections of the TCP door take, shared among them.

What a connection has sent is handled at once as long as nobody waits and TURN_S of this turn of the loop are not spent.  From then on connections
wait, and the one comes first that was given least: each has a mark, the seconds that it has taken so far, which is moved up to where the others are
when it comes back after a rest (start-time fair queueing).  So a frame is charged to its connection with what it costs, whatever it is, and who asks
little waits for one frame of those who ask much, not for all of them.

It must not know: frames, sessions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from time import perf_counter
from typing import Protocol

TURN_S = 0.010
# what one connection may take before the next has its turn, unless a single frame takes longer
SLICE_S = 0.001


class Asker(Protocol):
    """A connection.  `mark` and `waits` are for `Slices` alone."""

    mark: float
    waits: bool

    def work(self, until_s: float) -> bool:
        """Handle what was sent, until this time of the clock, but one frame at least; whether something is left that could be handled."""
        ...


class Slices:
    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float] = perf_counter) -> None:
        self._loop = loop
        self._clock = clock
        self._mark = self._spent_s = 0.0
        self._waiting: list[tuple[float, int, Asker]] = []
        self._ties = count()
        self._scheduled = False

    def ask(self, asker: Asker) -> None:
        """It has sent something."""
        if asker.waits:
            return
        if self._waiting or self._spent_s >= TURN_S:
            self._wait(asker)
        else:
            self._give(asker)
        self._schedule()

    def _wait(self, asker: Asker) -> None:
        asker.waits = True
        asker.mark = max(asker.mark, self._mark)
        heappush(self._waiting, (asker.mark, next(self._ties), asker))

    def _give(self, asker: Asker) -> None:
        asker.mark = self._mark = max(asker.mark, self._mark)
        began_s = self._clock()
        more = asker.work(began_s + SLICE_S)
        spent_s = self._clock() - began_s
        asker.mark += spent_s
        self._spent_s += spent_s
        if more:
            self._wait(asker)

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """The loop has come around."""
        self._scheduled = False
        self._spent_s = 0.0
        while self._waiting and self._spent_s < TURN_S:
            mark, _, asker = heappop(self._waiting)
            self._mark = max(self._mark, mark)
            asker.waits = False
            self._give(asker)
        if self._waiting:
            self._schedule()
