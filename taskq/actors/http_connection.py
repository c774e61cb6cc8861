"""One connection of the HTTP door: a socket on one side, Requests and Responses on the other.  No framework; `gateway` has all that HTTP means.

Rules:
- The answers of a connection leave in the order of its requests, joined into one write a turn of the loop.
- At most `queued_max` requests of a connection wait for answers, and none is taken on while the peer does not read: reading stops.
- What all connections may have done in a turn of the loop is bounded (turns.py): the rest waits unread, and the socket is not read meanwhile.
- Deadlines count from the first byte, so a peer that sends a byte now and then gains nothing, nor one that asks something else before.  A request
  that waits for the broker has none.
- What is held for a request that is not whole, or an answer that is not read, counts in `doors.Doors`, which may cut this connection.
- What is refused before it was whole ends its connection, after the peer had time to read why.
- Where access tokens are asked for, the gate sees the head of a request before anything of its body is kept, and who is not let in is not read
  from any more.

It must not know: shards, routes, what a message means.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Any

from taskq.actors.acceptor import Arrival
from taskq.actors.slot import Slot
from taskq.core.access import NOBODY, Grant
from taskq.errors import AuthFailed, BadRequest, InternalError, Overloaded, TaskqError
from taskq.gateway.answers import RequestTimeout, TlsRequired, error_response
from taskq.gateway.bearer import is_loopback, token_of
from taskq.gateway.http1 import PIECE_BYTES, Event, Interim, Receiver, Request, encode, piece_bytes
from taskq.gateway.routes import OPEN_PATHS

if TYPE_CHECKING:
    from taskq.actors.http import HttpListener

WRITE_BUFFER_BYTES = 256 << 10
# how late the answer to a failed proof is, after too many of them
FAILURE_S = 1.0

log = logging.getLogger(__name__)


class HttpProtocol(asyncio.Protocol):
    """One connection."""

    def __init__(self, listener: HttpListener, arrival: Arrival | None = None) -> None:
        self._listener = listener
        self._origin = listener.new_origin()
        self._arrival = arrival or Arrival()
        self._receiver = Receiver(listener.limits, self._admit if listener.gate is not None else None, OPEN_PATHS)
        self._transport: Any = None
        self._slots: deque[Slot] = deque()
        self._unread: bytes | memoryview = b""
        self._has_asked = False
        # whether some of what is unread was read: the rest of it has had its share
        self._served = False
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
        self._listener.turns.leave(self)
        self._listener.leave(self)
        self._arrival.end()

    def data_received(self, data: bytes) -> None:
        if self._receiver.ended:
            return
        self._unread = b"".join((self._unread, data)) if self._unread else data
        self._read(self._listener.turns.allowance())

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
        self._read(self._listener.turns.allowance())

    # ---- requests in ---------------------------------------------------------------------------------------------------------------

    def go_on(self, most: int) -> None:
        """Its turn has come, see `turns.Turns`."""
        self._read(most)
        if not (self._unread or self._slots or self._receiver.in_body or self._arrival.refusal is not None):
            self._listener.quiet.waits(self, self._has_asked)

    def _read(self, most: int) -> None:
        """Parse what came in, piece by piece, as long as there is room for its requests and something left of the turn, but for at most so many of
        them.  The rest waits in line."""
        turns = self._listener.turns
        while self._unread and most > 0 and self._has_room():
            self._served = True
            was_started, in_progress = self._receiver.started, len(self._slots)
            for event in self._parse(self._next_piece(min(most, self._listener.limits.queued_max - in_progress))):
                self._take(event)
            if self._receiver.in_body:
                self._listener.quiet.leave(self)
            if self._receiver.ended:
                self._unread = b""
            elif self._receiver.started and not was_started:
                self._began_ms = self._listener.now_ms
            requests = len(self._slots) - in_progress
            turns.spend(requests)
            most -= requests
            if not turns.lasts():
                break
        if not self._unread:
            self._served = False
        elif self._has_room():
            self._listener.quiet.leave(self)
            turns.wait(self, not self._served)
        self._look_for_end()
        self._hold()
        self._set_reading(not self._unread and self._has_room())

    def _next_piece(self, requests: int) -> bytes:
        """Take from what came in what is parsed next."""
        unread = memoryview(self._unread)
        piece = bytes(unread[:PIECE_BYTES])
        size = piece_bytes(piece, requests)
        self._unread = unread[size:] if size < len(unread) else b""
        return piece[:size]

    def _parse(self, piece: bytes) -> list[Event | InternalError]:
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
            self._has_asked = True
            slot = Slot(self, event, not event.keep_alive)
            self._slots.append(slot)
            self._listener.quiet.leave(self)
            if refusal is not None and event.path not in OPEN_PATHS:
                slot.finish(error_response(refusal))
            else:
                self._listener.serve(event, slot, self._origin)
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
            if not (self._slots or self._receiver.in_body):
                self._listener.quiet.rests(self)
            self._read(self._listener.turns.allowance())
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
        elif self._slots or self._unread:
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
