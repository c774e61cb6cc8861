"""Turns: how much of what came in over HTTP is worked on in one turn of the loop, over all connections together.

A connection works at once while nobody waits and the turn has something left.  Else it waits in line, unread, and goes on in a later turn:
- Those that had nothing yet of what they have sent go first, in the order in which they came, with one request each.  So who asks one thing waits
  for one thing of each of the others, however much they have sent.
- Those that had something follow, a share each in turn.  One of them goes on in every turn, so that none waits for ever.

It must not know: sockets, HTTP.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

TURN_REQUESTS = 64
TURN_S = 0.002


class Connection(Protocol):
    def go_on(self, most: int) -> None:
        """Work on what has come in: at most so many requests, as long as the turn lasts.  With more to do, wait again."""


class Turns:
    """See the module.  `share`: the requests that one connection may have done at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, share: int, time: Callable[[], float]) -> None:
        self._loop = loop
        self._share = share
        self._time = time
        self._going = False
        self._left = 0
        self._ends_s = 0.0
        self._first: OrderedDict[Connection, None] = OrderedDict()
        self._others: OrderedDict[Connection, None] = OrderedDict()

    def allowance(self) -> int:
        """How many requests a connection may have done now; 0 if it has to wait."""
        return 0 if self._first or self._others or not self.lasts() else self._share

    def lasts(self) -> bool:
        """Whether there is something left of this turn.  The first who asks begins it."""
        if not self._going:
            self._begin()
        return self._left > 0 and self._time() < self._ends_s

    def spend(self, requests: int) -> None:
        self._left -= requests

    def wait(self, connection: Connection, first: bool) -> None:
        """Get in line; who is there keeps its place."""
        if connection not in self._first and connection not in self._others:
            (self._first if first else self._others)[connection] = None
            self.lasts()

    def leave(self, connection: Connection) -> None:
        """The connection is gone."""
        self._first.pop(connection, None)
        self._others.pop(connection, None)

    def _begin(self) -> None:
        self._going = True
        self._left = TURN_REQUESTS
        self._ends_s = self._time() + TURN_S
        self._loop.call_soon(self._next)

    def _next(self) -> None:
        """A turn is over.  If somebody waits, the next one begins with them."""
        self._going = False
        if self._first or self._others:
            self._begin()
        while self._first and self.lasts():
            self._first.popitem(last=False)[0].go_on(1)
        if self._others:
            self._others.popitem(last=False)[0].go_on(self._share)
        while self._others and self.lasts():
            self._others.popitem(last=False)[0].go_on(self._share)
