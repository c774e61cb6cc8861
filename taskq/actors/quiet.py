"""Quiet: the connections of the HTTP door on which nothing is to be done, in the order in which they fell quiet, so that the oldest can make room.

Those that have asked nothing yet may be so many; each has a moment to ask, then the oldest go.  Those that have asked before may stay, until the
door is full and another one comes: then the one that has been idle for longest goes, unless that is a moment only.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from taskq.actors.doors import SPARED_S

# how long a new connection may take to ask something before it goes as the oldest of too many
THIN_S = 0.1


class Connection(Protocol):
    def make_room(self) -> None:
        """End for the sake of others, and count no more."""


class Quiet:
    """See the module."""

    def __init__(self, loop: asyncio.AbstractEventLoop, silent_max: int) -> None:
        self._loop = loop
        self._silent_max = silent_max
        self._silent: dict[Connection, None] = {}
        self._since_s: dict[Connection, float] = {}
        self._thinning = False

    def enter(self, connection: Connection) -> None:
        """A connection is made."""
        self._silent[connection] = None
        self.rests(connection)
        if len(self._silent) > self._silent_max:
            self._thin_soon()

    def rests(self, connection: Connection) -> None:
        """There is nothing to do on it from now on."""
        self._since_s.pop(connection, None)
        self._since_s[connection] = self._loop.time()

    def waits(self, connection: Connection, has_asked: bool) -> None:
        """What it had sent was read, and was nothing that can be answered."""
        if has_asked:
            self.rests(connection)
        else:
            self.enter(connection)

    def leave(self, connection: Connection) -> None:
        """It has asked something, waits to be read, or is gone."""
        self._silent.pop(connection, None)
        self._since_s.pop(connection, None)

    def make_room(self) -> None:
        """For one connection, if one is idle."""
        connection, since_s = next(iter(self._since_s.items()), (None, 0.0))
        if connection is not None and self._loop.time() - since_s >= SPARED_S:
            self._end(connection)

    def _thin_soon(self) -> None:
        if not self._thinning:
            self._thinning = True
            self._loop.call_later(THIN_S, self._thin)

    def _thin(self) -> None:
        self._thinning = False
        while len(self._silent) > self._silent_max:
            oldest = next(iter(self._silent))
            if self._loop.time() - self._since_s[oldest] < THIN_S:
                self._thin_soon()
                return
            self._end(oldest)

    def _end(self, connection: Connection) -> None:
        self.leave(connection)
        connection.make_room()
