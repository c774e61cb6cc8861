"""SessionActor: one TCP connection.  Bytes in, frames to a Session, its commands to the shards; answers out, one write a turn of the loop.

Rules:
- The order within a connection is never changed.
- A peer that does not read is not read from, and nothing is delivered to it until it does: its credit stays, its answers wait.
- What breaks the protocol ends this connection alone: the frames before it are handled, one Error says why, and the peer has a moment to read it.
- Before the session is ready a frame may have GREETING_BYTES_MAX, and it must be ready within GREETING_S.
- Who fails to prove an access token again and again is told so late.  When a token is revoked its connections end.

It must not know: shards, what a message means.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from taskq.core import messages as m
from taskq.core.effects import Command, Reply
from taskq.core.session import GREETED, Session, error_of_protocol
from taskq.errors import AuthFailed, InternalError, ProtocolError, SlowConsumer, TaskqError
from taskq.protocol.codec import Buffer, encode, join
from taskq.protocol.frames import RESENT, Frame
from taskq.protocol.framing import FrameDecoder

if TYPE_CHECKING:
    from taskq.actors.listener import Listener

GREETING_BYTES_MAX = 8_192
GREETING_S = 5.0
FAILURE_S = 1.0
LINGER_S = 2.0
# more requests than this side's own clients ever have in flight
REQUESTS_OPEN_MAX = 8_192
WRITE_BUFFER_BYTES = (64 << 10, 256 << 10)
# a peer that lets so much pile up does not read at all
UNREAD_BYTES_MAX = 256 << 20
# how a dead peer is noticed by the kernel: idle, between probes, probes
KEEPALIVE = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3)) if hasattr(socket, "TCP_KEEPIDLE") else ()

log = logging.getLogger("taskq.session")

Tell = Callable[[list[tuple[int, Command]]], None]


class SessionActor(asyncio.Protocol):
    """See the module.  `tell` carries commands to the shards."""

    def __init__(self, session: Session, listener: Listener, tell: Tell) -> None:
        self.session = session
        self._listener = listener
        self._tell = tell
        self._decoder = FrameDecoder(GREETING_BYTES_MAX)
        self._transport: Any = None
        self._since_s = 0.0
        self._greeted = False
        self._flushing = False
        self._reading = True
        self._writable = True
        self._ended = False

    # ---- called by the loop --------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        low, high = WRITE_BUFFER_BYTES
        self._transport.set_write_buffer_limits(high=high, low=low)
        _keep_alive(transport.get_extra_info("socket"))
        self._since_s = self._listener.loop.time()
        refusal = self._listener.enter(self)
        if refusal is not None:
            self._refuse(0, refusal)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._ended = True
        self.session.lost(self._listener.now_ms())
        self._listener.leave(self)

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        frames = self._decoder.feed(data)
        self._receive(frames)
        if self._decoder.error is not None and not self._ended:
            self._refuse(self._decoder.error_seq, self._decoder.error)

    def eof_received(self) -> None:
        """The peer sends no more; a frame that it began will never be whole."""
        if self._decoder.buffered_bytes and not self._ended:
            self._refuse(0, ProtocolError("the connection ended inside a frame"))

    def pause_writing(self) -> None:
        self._writable = False
        self._choke(True)
        self._set_reading()

    def resume_writing(self) -> None:
        self._writable = True
        self._choke(False)
        self._set_reading()
        self.session.ready()
        self._carry()

    # ---- frames in -----------------------------------------------------------------------------------------------------------------

    def _receive(self, frames: list[Frame]) -> None:
        now_ms = self._listener.now_ms()
        for frame in frames:
            if self.session.closing or self._ended:
                break
            try:
                self.session.receive(frame.seq, bool(frame.flags & RESENT), frame.message, now_ms)
            except AuthFailed as error:
                self._turn_away(frame.seq, error)
                return
            except ProtocolError as error:
                self._carry()
                self._refuse(frame.seq, error)
                return
            except Exception:
                log.exception("a %s frame could not be handled", type(frame.message).__name__)
                self._carry()
                self._refuse(frame.seq, InternalError())
                return
            if not self._greeted and self.session.role:
                self._greeted = True
                self._decoder.frame_bytes_max = self._listener.frame_bytes_max
        self._carry()

    def _carry(self) -> None:
        """Take from the session what the last calls left: commands, answers, connections that this one replaces."""
        session = self.session
        if session.commands:
            commands, session.commands = session.commands, []
            self._tell(commands)
        if session.evicted:
            for origin in session.evicted:
                self._listener.evict(origin)
            session.evicted.clear()
        if session.answers:
            self._flush_soon()
        self._set_reading()

    def _set_reading(self) -> None:
        """Read while the peer reads, and while it has not asked for more than is being worked on."""
        reading = self._ended or (self._writable and len(self.session.requests.open) < REQUESTS_OPEN_MAX)
        if reading != self._reading and self._transport is not None and not self._transport.is_closing():
            self._reading = reading
            if reading:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def _choke(self, choked: bool) -> None:
        consumer = self.session.consumer
        if consumer is not None and consumer.origin == self.session.origin:
            consumer.choked = choked

    # ---- answers out ---------------------------------------------------------------------------------------------------------------

    def answered(self, reply: Reply, now_ms: int) -> None:
        """A reply of a shard became durable."""
        if self._ended:
            return
        try:
            self.session.answered(reply.seq, reply.part, reply.message, now_ms)
        except Exception:
            log.exception("the answer of a shard could not be handled")
            self._refuse(reply.seq, InternalError())
            return
        self._flush_soon()

    def push(self, message: Any) -> None:
        """Send a frame that answers nothing."""
        if not self._ended and self.session.role:
            self.session.answers.append((0, message))
            self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._listener.flush_soon(self)

    def flush(self) -> None:
        """Write what has gathered in this turn."""
        self._flushing = False
        if self._ended or self._transport.is_closing():
            return
        buffers, broken = self._take_answers()
        if buffers:
            self._transport.writelines(join(buffers))
        if broken or (self.session.closing and not self.session.requests.open):
            self._end()
        elif self._transport.get_write_buffer_size() > UNREAD_BYTES_MAX:
            log.warning("connection %d does not read what it asked for and is cut off", self.session.origin)
            self._refuse(0, SlowConsumer())
        elif not self._reading:
            self._set_reading()

    def _refuse(self, seq: int, error: TaskqError) -> None:
        """Say why, and close.  What the shards still have to say is not waited for."""
        if self._transport is None:
            return
        buffers, _ = self._take_answers()
        self._transport.writelines(join([*buffers, *encode(error_of_protocol(error), seq)]))
        self._end()

    def _turn_away(self, seq: int, error: AuthFailed) -> None:
        """A proof has failed.  After too many of them from this address the answer is late, and nothing is read meanwhile."""
        peer = self._transport.get_extra_info("peername")
        if self._listener.has_failed_often(str(peer[0]) if isinstance(peer, tuple) else ""):
            self._listener.loop.call_later(FAILURE_S, self._refuse, seq, error)
        else:
            self._refuse(seq, error)

    def _take_answers(self) -> tuple[list[Buffer], bool]:
        """What has gathered, as bytes, and whether it tells of a bug, after which the connection ends."""
        answers, self.session.answers = self.session.answers, []
        buffers: list[Buffer] = []
        broken = False
        for seq, message in answers:
            try:
                buffers += encode(message, seq)
            except Exception:
                log.exception("a %s frame could not be encoded", type(message).__name__)
                message = error_of_protocol(InternalError())
                buffers += encode(message, seq)
            broken = broken or (type(message) is m.Error and message.code == InternalError.code)
        return buffers, broken

    def _end(self) -> None:
        """A peer that still sends would lose the last answer to a reset, so it is listened to for a moment; it is given no more tasks."""
        self._ended = True
        self.session.lost(self._listener.now_ms())
        self._since_s = self._listener.loop.time()
        self._set_reading()
        if self._transport.can_write_eof():
            self._transport.write_eof()

    # ---- called by the listener ----------------------------------------------------------------------------------------------------

    def sweep(self, now_s: float) -> None:
        """End this connection if its deadline has passed."""
        if self._transport is None:
            return
        if self._ended:
            if now_s - self._since_s >= LINGER_S:
                self._transport.abort()
        elif not self.session.role and now_s - self._since_s >= GREETING_S:
            missing = "PROOF" if self.session.state is GREETED else "HELLO"
            self._refuse(0, ProtocolError(f"no {missing} came within {GREETING_S:g} s"))

    def revoked(self) -> None:
        """The access token of this connection does not count any more."""
        if not self._ended:
            self._refuse(0, AuthFailed("the access token of this connection was revoked or changed"))

    def close(self) -> None:
        """Close after what was written has left; how long that may take is the listener's to say."""
        self._ended = True
        self._since_s = math.inf
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        self._ended = True
        if self._transport is not None:
            self._transport.abort()


def _keep_alive(connection: Any) -> None:
    """A peer that is gone without a word is noticed within a minute."""
    if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE:
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
