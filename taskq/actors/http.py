"""The HTTP door: the listening sockets, the connections (http_connection.py) and the timer that looks at them.

Rules:
- One timer looks at all connections each `sweep_s`; a deadline fires up to one such interval late.
- A connection that is one too many is not taken on: it has a moment to ask how the broker is, on the open paths, and is told so if it asks anything
  else, or nothing.  Of those that have asked nothing yet the oldest make room when they are too many; where the door is full, so does the one that
  has been idle for longest.
- A bug in a builder is a 500 with nothing of it shown, and a traceback in the log.

It must not know: shards, routes, what a message means.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Mapping
from functools import partial
from itertools import count
from typing import TypeAlias

import attrs

from taskq.actors.acceptor import Acceptor
from taskq.actors.doors import HELD_BYTES_MAX, Crowd, Doors, files_for_connections
from taskq.actors.http_connection import HttpProtocol
from taskq.actors.quiet import Quiet
from taskq.actors.slot import Slot, bug
from taskq.actors.sockets import addresses, bind
from taskq.actors.turns import Turns
from taskq.clock import Clock
from taskq.core.gate import FAILURES_MAX, Gate
from taskq.core.types import TaskType
from taskq.errors import Answer
from taskq.gateway.answers import error_response
from taskq.gateway.http1 import HttpLimits, Request
from taskq.gateway.openapi import document
from taskq.gateway.routes import Gateway, Message, Status

Reply: TypeAlias = Callable[[Message], None]
# called with the number of the connection, and with a grant as well where access tokens are asked for
Submit: TypeAlias = Callable[..., None]

BACKLOG = 1_024

log = logging.getLogger(__name__)


class HttpListener:
    """The listening sockets, their connections, and the timer that looks at them.  Made by `start_http`."""

    def __init__(self, gateway: Gateway, submit: Submit, clock: Clock, doors: Doors, gate: Gate | None = None) -> None:
        self.gate = gate
        self.limits = gateway.limits
        self.doors = doors
        self.closing = False
        self.now_ms = 0
        self._gateway = gateway
        self._submit = submit
        self.new_origin = count(-2, -1).__next__
        self._clock = clock
        self._clock_ms = clock.steady_ms()
        self.loop = asyncio.get_running_loop()
        self.addresses: list[tuple[str, int]] = []
        self._acceptors: list[Acceptor] = []
        self._connections: set[HttpProtocol] = set()
        self._crowd = Crowd(doors, self.limits.connections_max, self.limits.address_connections_max)
        self.turns = Turns(self.loop, self.limits.queued_max, self.loop.time)
        self.quiet = Quiet(self.loop, self.limits.silent_connections_max)
        self._crowd.make_room = self.quiet.make_room
        self._written: list[HttpProtocol] = []
        self._timer: asyncio.TimerHandle | None = None
        self._gone = asyncio.Event()
        self._gone.set()

    @property
    def address(self) -> tuple[str, int]:
        """(host, port) of the first listening socket."""
        return self.addresses[0]

    async def listen(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        """Bind, see `sockets.bind`."""
        most = self.limits.silent_connections_max
        self._acceptors = await bind(partial(HttpProtocol, self), self._crowd, host, port, BACKLOG, tls, handshakes_max=most)
        self.addresses = addresses(self._acceptors)

    async def close(self, deadline_s: float = 5.0) -> None:
        """Accept no more, end idle connections, answer who only reads that it ends, let other requests in progress finish; at the deadline cut
        what is left."""
        self.closing = True
        for acceptor in self._acceptors:
            await acceptor.close()
        for connection in list(self._connections):
            connection.retire()
        try:
            await asyncio.wait_for(self._gone.wait(), deadline_s)
        except TimeoutError:
            for connection in list(self._connections):
                connection.abort()
            await self._gone.wait()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # ---- called by connections -----------------------------------------------------------------------------------------------------

    def enter(self, connection: HttpProtocol, is_taken_on: bool) -> None:
        """A connection is made."""
        self._connections.add(connection)
        self._gone.clear()
        if self._timer is None:
            self._clock_ms = self._clock.steady_ms()
            self._arm()
        if is_taken_on:
            self.quiet.enter(connection)

    def leave(self, connection: HttpProtocol) -> None:
        self._connections.discard(connection)
        self.quiet.leave(connection)
        if not self._connections:
            self._gone.set()

    def serve(self, request: Request, slot: Slot, origin: int) -> None:
        """Find out what a request asks and have it done, on behalf of this connection."""
        try:
            submit = partial(self._submit, grant=request.grant, origin=origin)
            slot.run(self._gateway.call(request), submit)
        except Answer as error:
            slot.finish(error_response(error))
        except Exception as error:
            slot.finish(bug(error))

    def has_failed_often(self, address: str) -> bool:
        """Count one more failed proof of this address."""
        assert self.gate is not None
        failures = self.gate.failures.add(address, self._clock.steady_ms())
        if failures <= FAILURES_MAX:
            log.warning("a request over HTTP from %s had an access token that is not known", address)
        return failures > FAILURES_MAX

    def flush_soon(self, connection: HttpProtocol) -> None:
        if not self._written:
            self.loop.call_soon(self._flush)
        self._written.append(connection)

    def _flush(self) -> None:
        connections, self._written = self._written, []
        for connection in connections:
            connection.flush()

    # ---- the timer -----------------------------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        self._timer = self.loop.call_later(self.limits.sweep_s, self.sweep)

    def sweep(self) -> None:
        """Look at every connection.  Time in here moves by at most two intervals a sweep, so that a broker that was stopped for a while does
        not take its peers for slow."""
        now_ms = self._clock.steady_ms()
        self.now_ms += min(now_ms - self._clock_ms, round(2000 * self.limits.sweep_s))
        self._clock_ms = now_ms
        for connection in list(self._connections):
            connection.sweep(self.now_ms)
        self._timer = None
        if self._connections:
            self._arm()


async def start_http(
    host: str,
    port: int,
    submit: Submit,
    status: Status,
    limits: HttpLimits,
    clock: Clock,
    *,
    gate: Gate | None = None,
    tls: ssl.SSLContext | None = None,
    doors: Doors | None = None,
    types: Mapping[str, TaskType] | None = None,
) -> HttpListener:
    """Serve HTTP on this address until the listener is closed.  `submit(message, reply)` calls `reply` exactly once, on the loop, when the
    answer is durable.  Port 0 takes a free one, see `address`.  `gate`: who checks access tokens.  `doors`: what this door shares with the other;
    None: it is the only one.  `types`: the task types that workers have declared.  OSError if the address cannot be bound."""
    own = attrs.evolve(limits, hosts=limits.hosts | {host.lower()})
    shared = doors or Doors(files_for_connections(), HELD_BYTES_MAX)
    listener = HttpListener(Gateway(own, status, document(), {} if types is None else types), submit, clock, shared, gate)
    await listener.listen(host, port, tls)
    return listener
