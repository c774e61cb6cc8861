"""The HTTP door: sockets on one side, Requests and Responses on the other.  No framework; `gateway` has all that HTTP means.

Rules:
- The answers of a connection leave in the order of its requests, joined into one write a turn of the loop.
- At most `queued_max` requests of a connection wait for answers, and none is taken on while the peer does not read: reading stops.
- Deadlines count from the first byte, so a peer that sends a byte now and then gains nothing, nor one that asks something else before.  A request
  that waits for the broker has none.
- What is held for a request that is not whole, or an answer that is not read, counts in `doors.Doors`, which may cut this connection.
  One timer a listener looks at all connections each `sweep_s`; a deadline fires up to one such interval late.
- A connection that is one too many is not taken on: it has a moment to ask how the broker is, on the open paths, and is told so if it asks anything
  else, or nothing.  Of those that have asked nothing yet the oldest make room when they are too many; where the door is full, so does the one that
  has been idle for longest.
- What is refused before it was whole ends its connection, after the peer had time to read why.
- Where access tokens are asked for, the gate sees the head of a request before anything of its body is kept, and who is not let in is not read
  from any more.
- A bug in a builder is a 500 with nothing of it shown, and a traceback in the log.

It must not know: shards, routes, what a message means.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import attrs

from taskq.actors.acceptor import Acceptor, Arrival
from taskq.actors.doors import HELD_BYTES_MAX, Crowd, Doors, files_for_connections
from taskq.actors.quiet import Quiet
from taskq.actors.slot import Slot, bug
from taskq.actors.sockets import addresses, bind
from taskq.clock import Clock
from taskq.core.access import NOBODY, Grant
from taskq.core.gate import FAILURES_MAX, Gate
from taskq.core.types import TaskType
from taskq.errors import Answer, AuthFailed, BadRequest, InternalError, Overloaded, TaskqError
from taskq.gateway.answers import RequestTimeout, TlsRequired, error_response
from taskq.gateway.bearer import is_loopback, token_of
from taskq.gateway.http1 import PIECE_BYTES, Event, HttpLimits, Interim, Receiver, Request, encode
from taskq.gateway.openapi import document
from taskq.gateway.routes import OPEN_PATHS, Gateway, Message, Status

Reply: TypeAlias = Callable[[Message], None]
# called with a grant as well where access tokens are asked for
Submit: TypeAlias = Callable[..., None]

WRITE_BUFFER_BYTES = 256 << 10
BACKLOG = 1_024
# how late the answer to a failed proof is, after too many of them
FAILURE_S = 1.0

log = logging.getLogger(__name__)


class HttpProtocol(asyncio.Protocol):
    """One connection."""

    def __init__(self, listener: HttpListener, arrival: Arrival | None = None) -> None:
        self._listener = listener
        self._arrival = arrival or Arrival()
        self._receiver = Receiver(listener.limits, self._admit if listener.gate is not None else None, OPEN_PATHS)
        self._transport: Any = None
        self._slots: deque[Slot] = deque()
        self._unread: bytes | memoryview = b""
        self._since_ms = 0
        self._began_ms = 0
        self._held = 0
        self._flushing = False
        self._reading = True
        self._writable = True
        self._lingering = False
        self._peer_done = False

    # ---- called by the loop --------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES, low=WRITE_BUFFER_BYTES // 4)
        self._touch()
        self._listener.enter(self, self._arrival.refusal is None)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._receiver.close()
        self._slots.clear()
        self._unread = b""
        self._hold()
        self._listener.leave(self)
        self._arrival.end()

    def data_received(self, data: bytes) -> None:
        if self._receiver.ended:
            return
        self._unread = b"".join((self._unread, data)) if self._unread else data
        self._read()

    def eof_received(self) -> bool:
        """The peer sends no more, or is gone: which of the two shows only when it is answered.  So it gets its answers now, without waiting for
        tasks, unless it speaks TLS, where a closed side closes the other."""
        self._peer_done = True
        self._look_for_end()
        for slot in self._slots:
            slot.hurry()
        return bool(self._slots or self._unread) and self._can_half_close()

    def _look_for_end(self) -> None:
        """A request that is not whole when the peer sends no more will never be."""
        if self._peer_done and not self._unread and self._receiver.started and not self._receiver.ended:
            self._refuse(BadRequest("the connection ended inside a request", field="body"))

    def pause_writing(self) -> None:
        self._writable = False
        self._touch()

    def resume_writing(self) -> None:
        self._writable = True
        self._touch()
        self._read()

    # ---- requests in ---------------------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        """Parse what came in, piece by piece, as long as there is room for its requests."""
        while self._unread and self._has_room():
            piece = self._unread
            self._unread = b""
            if len(piece) > PIECE_BYTES:
                view = memoryview(piece)
                piece, self._unread = view[:PIECE_BYTES], view[PIECE_BYTES:]
            was_started = self._receiver.started
            for event in self._parse(piece):
                self._take(event)
            if self._receiver.in_body:
                self._listener.quiet.leave(self)
            if self._receiver.ended:
                self._unread = b""
            elif self._receiver.started and not was_started:
                self._began_ms = self._listener.now_ms
        self._look_for_end()
        self._hold()
        self._set_reading(not self._unread and self._has_room())

    def _parse(self, piece: bytes | memoryview) -> list[Event | InternalError]:
        try:
            return [*self._receiver.feed(piece)]
        except Exception:
            log.exception("a request over HTTP could not be read")
            return [InternalError()]

    def _has_room(self) -> bool:
        return self._writable and len(self._slots) < self._listener.limits.queued_max

    def _set_reading(self, reading: bool) -> None:
        if reading != self._reading and self._transport is not None and not self._transport.is_closing():
            self._reading = reading
            if reading:
                self._began_ms = self._listener.now_ms
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def _take(self, event: Event | InternalError) -> None:
        if isinstance(event, Request):
            refusal = self._arrival.refusal
            if refusal is not None:
                event.keep_alive = False
                self._receiver.ended = True
            slot = Slot(self, event, not event.keep_alive)
            self._slots.append(slot)
            self._listener.quiet.leave(self)
            if refusal is not None and event.path not in OPEN_PATHS:
                slot.finish(error_response(refusal))
            else:
                self._listener.serve(event, slot)
                if self._peer_done:
                    slot.hurry()
        elif isinstance(event, Interim):
            slot = Slot(self, None, False)
            slot.data = event.data
            self._slots.append(slot)
            self.answered()
        else:
            self._refuse(event)

    def _refuse(self, error: TaskqError) -> None:
        """Answer what was never a whole request; nothing more is read from this peer."""
        self._receiver.ended = True
        self._unread = b""
        slot = Slot(self, None, True)
        self._slots.append(slot)
        if isinstance(error, AuthFailed) and self._listener.has_failed_often(self._peer()):
            self._listener.loop.call_later(FAILURE_S, slot.finish, error_response(error))
        else:
            slot.finish(error_response(error))

    def _admit(self, path: str, authorization: bytes) -> Grant | None:
        """Who asks, as the gate sees it."""
        if path in OPEN_PATHS:
            return NOBODY
        if self._transport.get_extra_info("ssl_object") is None and not is_loopback(self._peer()):
            raise TlsRequired()
        assert self._listener.gate is not None
        return self._listener.gate.bearer(token_of(authorization))

    def is_current(self, grant: Grant) -> bool:
        """Whether the access token of a request still counts."""
        gate = self._listener.gate
        return gate is None or gate.is_current(grant)

    def _peer(self) -> str:
        peer = self._transport.get_extra_info("peername") if self._transport is not None else None
        return str(peer[0]) if isinstance(peer, tuple) else ""

    # ---- answers out ---------------------------------------------------------------------------------------------------------------

    def answered(self) -> None:
        """A slot is ready: write at the end of the turn, with whatever else becomes ready in it."""
        if not self._flushing and self._transport is not None:
            self._flushing = True
            self._listener.flush_soon(self)

    def flush(self) -> None:
        self._flushing = False
        if self._transport is None or self._transport.is_closing():
            return
        parts, closing = self._collect()
        if parts:
            self._transport.write(parts[0] if len(parts) == 1 else b"".join(parts))
            self._touch()
        if closing is not None:
            self._end(closing)
        elif parts:
            if not self._slots:
                self._listener.quiet.rests(self)
            self._read()
        self._hold()

    def _collect(self) -> tuple[list[bytes], Slot | None]:
        """The bytes of all answers that are next in order, and the slot that ends the connection, if one does."""
        parts: list[bytes] = []
        slots = self._slots
        while slots and slots[0].ready:
            slot = slots.popleft()
            if slot.response is None:
                parts.append(slot.data)
                continue
            last = slot.last or (not slots and self._is_over())
            parts.append(encode(slot.response, slot.request, last))
            if last:
                slots.clear()
                return parts, slot
        return parts, None

    def _is_over(self) -> bool:
        """Whether nothing will follow the answer that leaves the queue empty."""
        return not self._unread and (self._peer_done or (self._listener.closing and not self._receiver.started))

    def _end(self, slot: Slot) -> None:
        """Close after the last answer.  A peer that still sends would lose it to a reset, so it is listened to for a moment."""
        self._receiver.ended = True
        if slot.request is not None or self._peer_done:
            self._transport.close()
            return
        if self._arrival.refusal is not None and self._listener.doors.crowded:
            self._transport.close()
            return
        self._lingering = True
        self._set_reading(True)
        if self._can_half_close():
            self._transport.write_eof()

    def _can_half_close(self) -> bool:
        return self._transport is not None and bool(self._transport.can_write_eof())

    # ---- deadlines -----------------------------------------------------------------------------------------------------------------

    def _touch(self) -> None:
        self._since_ms = self._listener.now_ms

    def sweep(self, now_ms: int) -> None:
        """End this connection if its deadline has passed."""
        limits, age_s = self._listener.limits, (now_ms - self._since_ms) / 1000 - self._listener.limits.sweep_s
        if not self._writable or self._transport.is_closing():
            if age_s >= limits.request_s:
                self.abort()
        elif self._lingering:
            if age_s >= limits.linger_s:
                self.abort()
        elif self._arrival.refusal is not None and not self._slots:
            if age_s >= limits.linger_s:
                self._refuse(self._arrival.refusal)
        elif self._receiver.started:
            if self._reading:
                self._check_arrival((now_ms - self._began_ms) / 1000 - limits.sweep_s)
        elif self._slots:
            return
        elif age_s >= limits.idle_s:
            self._transport.close()
            self._touch()

    def _check_arrival(self, age_s: float) -> None:
        limits = self._listener.limits
        what, limit_s = ("request", limits.request_s) if self._receiver.in_body else ("request's head", limits.head_s)
        if age_s >= limit_s:
            self._refuse(RequestTimeout(f"the {what} did not arrive within {limit_s:g} seconds; send it again on a new connection"))

    # ---- memory --------------------------------------------------------------------------------------------------------------------

    def held_bytes(self) -> int:
        """What is in memory because the peer has not sent the rest, or not taken what was sent."""
        unread = 0 if self._transport is None else self._transport.get_write_buffer_size()
        waiting = sum(len(slot.response.body) for slot in self._slots if slot.response is not None)
        return self._receiver.held_bytes + len(self._unread) + unread + waiting

    def _hold(self) -> None:
        size = self.held_bytes()
        if size != self._held:
            self._held = size
            self._listener.doors.hold(self, size)

    def cut(self) -> None:
        """All connections together hold too much, and this one holds most."""
        self._held = 0
        if self._transport is None:
            return
        log.warning("a connection holds %d bytes, more than any other, and is cut off to save memory", self.held_bytes())
        if self._receiver.started and self._writable and not self._slots:
            self._refuse(Overloaded("too much memory is held for requests that are not whole yet; send it again later", retry_after_ms=1_000))
            self._receiver.close()
        else:
            self.abort()

    def retire(self) -> None:
        """The listener closes: an idle connection ends now, another one after its answers."""
        for slot in self._slots:
            slot.give_up()
        if self._transport is not None and not self._slots and not self._receiver.started and not self._unread and not self._lingering:
            self._transport.close()

    def make_room(self) -> None:
        """End for the sake of others; nothing is done here."""
        if self._transport is not None:
            self._transport.close()
        self._arrival.end()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


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
        self._clock = clock
        self._clock_ms = clock.steady_ms()
        self.loop = asyncio.get_running_loop()
        self.addresses: list[tuple[str, int]] = []
        self._acceptors: list[Acceptor] = []
        self._connections: set[HttpProtocol] = set()
        self._crowd = Crowd(doors, self.limits.connections_max, self.limits.address_connections_max)
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

    def serve(self, request: Request, slot: Slot) -> None:
        """Find out what a request asks and have it done."""
        try:
            submit = self._submit if request.grant is None else partial(self._submit, grant=request.grant)
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
