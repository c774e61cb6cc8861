"""SessionActor: one TCP connection.  Bytes in, frames to a Session, its commands to the shards; answers out, one write a turn of the loop.

Rules:
- The order within a connection is never changed.
- A peer that does not read is not read from, and nothing is delivered to it until it does: its credit stays, its answers wait.
- What breaks the protocol ends this connection alone: the frames before it are handled and answered, one Error says why, and the peer has a moment
  to read it.  A peer that sends no more (half-closed) gets the answers to what it asked for.  Waits for tasks are not waited for.
- Frames behind a Resume wait until that is answered.
- Before the session is ready a frame may have GREETING_BYTES_MAX.  Deadlines count from the first byte, so that a byte now and then gains nothing:
  for the greeting, for the rest of a frame, for the next sign of life, for answers to be taken.  See `doors.TcpLimits`.
- Who fails to prove an access token again and again is told so late.  When a token is revoked its connections end.
- A turn of the loop decodes and handles at most TURN_FRAMES of a connection, for as long as slices.py gives it, and no more than `requests_max` of
  its requests are worked on at a time; the rest waits, and the socket is not read, so that nobody is starved by who asks much.  An INSPECT waits
  for the one before.  A GET that waits for a task is not work: WAITS_MAX of them may wait.

It must not know: shards, what a message means.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, Any

from taskq.actors.doors import RETRY_MS, SPARED_S, WAITS_MAX
from taskq.actors.leaving import Leaving
from taskq.actors.sockets import keep_alive
from taskq.actors.unread import Unread
from taskq.core import messages as m
from taskq.core.effects import Command, Reply
from taskq.core.enqueue import error_of
from taskq.core.session import GREETED, Session
from taskq.errors import AuthFailed, InternalError, Overloaded, ProtocolError, SlowConsumer, TaskqError, TimedOut, TooManyConnections
from taskq.protocol.codec import Buffer, encode, join
from taskq.protocol.frames import RESENT, Frame
from taskq.protocol.framing import FrameDecoder

if TYPE_CHECKING:
    from taskq.actors.acceptor import Arrival
    from taskq.actors.listener import Listener

GREETING_BYTES_MAX = 8_192
FAILURE_S = 1.0
# how long an end waits for the answers to what was asked before
ANSWERS_S = 5.0
LINGER_S = 2.0
TURN_FRAMES = 64
# so many are decoded at once: a chunk may hold ten thousand tiny ones
PIECE_FRAMES = 16
WRITE_BUFFER_BYTES = (64 << 10, 256 << 10)

# frames that take a turn for themselves: the answer is as long as the broker is large
COSTS: dict[type, int] = {m.Inspect: TURN_FRAMES}

log = logging.getLogger("taskq.session")

Tell = Callable[[list[tuple[int, Command]]], None]


class SessionActor(asyncio.BufferedProtocol):
    """See the module.  `tell` carries commands to the shards."""

    def __init__(self, session: Session, listener: Listener, tell: Tell, arrival: Arrival) -> None:
        self.session = session
        self._arrival = arrival
        self._listener = listener
        self._tell = tell
        self._decoder = FrameDecoder(GREETING_BYTES_MAX)
        self._frames: list[Frame] = []
        self._chunk_bytes = 0
        self._transport: Any = None
        self._since_s = 0.0
        self._heard_s = 0.0
        self._part_since_s = 0.0
        self._unread = Unread()
        self._held = 0
        self._greeted = False
        self._flushing = False
        self.mark, self.waits = 0.0, False  # for slices.py
        self._reading = True
        self._writable = True
        self._no_more = False
        self._leaving: Leaving | None = None
        self._ended = False

    # ---- called by the loop --------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        low, high = WRITE_BUFFER_BYTES
        self._transport.set_write_buffer_limits(high=high, low=low)
        keep_alive(transport.get_extra_info("socket"))
        self._since_s = self._heard_s = self._listener.time()
        refusal = self._arrival.refusal
        self._listener.enter(self, refusal is None)
        if refusal is not None:
            self.turn_away(refusal)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._ended = True
        self._drop_frames()
        self._hold()
        self.session.lost(self._listener.now_ms())
        self._listener.leave(self)
        self._arrival.end()

    def get_buffer(self, size_hint: int) -> memoryview:
        """The rest of a large frame is received where it stays; all else into one buffer that the connections share, since it is read at once."""
        room = self._decoder.room
        return self._listener.inbox if room is None else room

    def buffer_updated(self, size: int) -> None:
        if self._decoder.room is None:
            self.data_received(bytes(self._listener.inbox[:size]))
        else:
            self._decoder.fill(size)
            self._received()

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        if not self._decoder.buffered_bytes:
            self._part_since_s = self._listener.time()
        self._chunk_bytes = len(data)
        self._decoder.hand(data)
        self._received()

    def _received(self) -> None:
        self._heard_s = self._listener.time()
        self._listener.slices.ask(self)
        if self.waits:
            self._set_reading()
            self._hold()

    def eof_received(self) -> bool:
        """The peer sends no more; what it has sent is handled and answered.  Over TLS both directions end at once."""
        self._no_more = True
        self._listener.slices.ask(self)
        self._flush_soon()
        return self._transport is not None and self._transport.can_write_eof() and not self._ended

    def pause_writing(self) -> None:
        if self._transport is None:
            return
        self._writable = False
        self._unread.begin(self._listener.time(), self._transport.get_write_buffer_size())
        self._choke(True)
        self._set_reading()

    def resume_writing(self) -> None:
        self._writable = True
        self._choke(False)
        self.session.ready()
        self._listener.slices.ask(self)

    # ---- frames in -----------------------------------------------------------------------------------------------------------------

    @property
    def _deaf(self) -> bool:
        """No frame is taken any more."""
        return self._ended or self._leaving is not None

    def work(self, until_s: float) -> bool:
        """Handle what came in, as far as this turn and the requests in progress allow; whether it may go on in a later turn."""
        session, now_ms = self.session, self._listener.now_ms()
        spent = 0
        while not (session.closing or self._deaf) and self._has_room() and (frame := self._next_frame()) is not None:
            spent += COSTS.get(type(frame.message), 1)
            self._receive(frame, now_ms)
            if spent >= TURN_FRAMES or perf_counter() >= until_s:
                break
        if self._deaf or session.closing:
            self._drop_frames()
        self._carry()
        if not (self._has_frames or self._deaf or session.closing):
            self._look_for_end()
        self._hold()
        return self._can_go_on()

    @property
    def _has_frames(self) -> bool:
        """Something came in that is not handled."""
        return bool(self._frames) or self._decoder.has_more

    def _can_go_on(self) -> bool:
        return self._has_frames and self._has_room() and not (self._is_next_listing() or self.session.closing or self._deaf)

    def _next_frame(self) -> Frame | None:
        """The next one that can be handled now; they are decoded some at a time, since they may be very many."""
        if not self._frames:
            self._frames = self._decoder.take(PIECE_FRAMES)
            if self._frames:
                self._part_since_s = self._heard_s
        return self._frames.pop(0) if self._frames and not self._is_next_listing() else None

    def _is_next_listing(self) -> bool:
        """An INSPECT waits for the one before."""
        return bool(self._frames) and type(self._frames[0].message) is m.Inspect and bool(self.session.requests.listing)

    def _drop_frames(self) -> None:
        self._frames.clear()
        self._decoder.close()

    def _look_for_end(self) -> None:
        """All frames are handled: what comes behind them may end the connection."""
        if self._decoder.error is not None:
            self._leave(self._decoder.error_seq, self._decoder.error)
        elif self._no_more and self._decoder.buffered_bytes:
            self._leave(0, ProtocolError("the connection ended inside a frame"))
        elif self._no_more:
            self._leave(0, None)

    def _has_room(self) -> bool:
        if self.session.resuming:
            return False
        requests = self.session.requests
        return self._writable and requests.working < self._listener.limits.requests_max and len(requests.waiting) <= WAITS_MAX

    def _receive(self, frame: Frame, now_ms: int) -> None:
        try:
            self.session.receive(frame.seq, bool(frame.flags & RESENT), frame.message, now_ms)
        except AuthFailed as error:
            self._let_down(frame.seq, error)
        except ProtocolError as error:
            self._carry()
            self._leave(frame.seq, error)
        except Exception:
            log.exception("a %s frame could not be handled", type(frame.message).__name__)
            self._carry()
            self._refuse(frame.seq, InternalError())
        else:
            if not self._greeted and self.session.role:
                self._greeted = True
                self._decoder.frame_bytes_max = self._listener.limits.frame_bytes_max
                self._listener.greeted(self, self._held)

    def _carry(self) -> None:
        """Take from the session what the last calls left: commands, answers, words for the log, connections that this one replaces."""
        session = self.session
        if session.commands:
            commands, session.commands = session.commands, []
            self._tell(commands)
        if session.evicted:
            evicted, session.evicted = session.evicted, {}
            for origin, why in evicted.items():
                self._listener.evict(origin, why)
        for notice in session.notices:
            log.warning("%s", notice)
        session.notices.clear()
        if session.answers:
            self._flush_soon()
        self._set_reading()

    def _set_reading(self) -> None:
        """Read while the peer reads, and while all that it asked for is being worked on."""
        reading = self._deaf or (not self._has_frames and self._has_room())
        if reading != self._reading and not self._no_more and self._transport is not None and not self._transport.is_closing():
            self._reading = reading
            if reading:
                self._part_since_s = self._heard_s = self._listener.time()
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
        if self.session.evicted:
            self._carry()
        self._flush_soon()

    def push(self, message: Any) -> None:
        """Send a frame that answers nothing."""
        if not self._deaf and self.session.role:
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
            joined = join(buffers)
            if not self._writable:
                self._unread.added_bytes += sum(map(len, joined))
            self._transport.writelines(joined)
        if broken or (self.session.closing and not self._owes_answers()):
            self._end()
        elif self._leaving is not None:
            self._leave_if_answered()
        elif self._has_frames:
            if self._can_go_on():
                self._listener.slices.ask(self)
        elif not self._reading:
            self._set_reading()
        self._hold()

    def _owes_answers(self) -> bool:
        """Who may be gone, since it sends no more, is not kept for a task to end."""
        requests = self.session.requests
        return bool(requests.working if self._no_more else requests.open)

    def _leave(self, seq: int, error: TaskqError | None) -> None:
        """Take nothing more, and end when the answers to what was asked before have left; then say why, if there is something to say."""
        if self._deaf or self._transport is None:
            return
        self._leaving = Leaving(seq, error, self._listener.time())
        self._drop_frames()
        self.session.lost(self._listener.now_ms())
        self._set_reading()
        self._leave_if_answered()

    def _leave_if_answered(self) -> None:
        leaving = self._leaving
        if leaving is not None and not self.session.requests.working:
            self._refuse(leaving.seq, leaving.error)

    def evicted(self, why: ProtocolError) -> None:
        """The worker session is not this connection's any more."""
        self._leave(0, why)

    def _refuse(self, seq: int, error: TaskqError | None) -> None:
        """Say why, if there is something to say, and close.  What the shards still have to say is not waited for."""
        if self._transport is None or self._ended:
            return
        buffers, _ = self._take_answers()
        if error is not None:
            buffers += encode(error_of(error), seq)
        if buffers:
            self._transport.writelines(join(buffers))
        self._end()

    def _let_down(self, seq: int, error: AuthFailed) -> None:
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
                message = error_of(InternalError())
                buffers += encode(message, seq)
            broken = broken or (type(message) is m.Error and message.code == InternalError.code)
        return buffers, broken

    def _end(self) -> None:
        """A peer that still sends would lose the last answer to a reset, so it is listened to for a moment; it is given no more tasks."""
        self._ended = True
        self._drop_frames()
        self.session.lost(self._listener.now_ms())
        self._since_s = self._listener.time()
        self._set_reading()
        if self._no_more:
            self._transport.close()
        elif self._transport.can_write_eof():
            self._transport.write_eof()

    # ---- called by the listener ----------------------------------------------------------------------------------------------------

    def sweep(self, now_s: float) -> None:
        """End this connection if a deadline of it has passed."""
        if self._transport is None:
            return
        if self._ended:
            if now_s - self._since_s >= LINGER_S:
                self._transport.abort()
        elif self._leaving is not None:
            if now_s - self._leaving.since_s >= ANSWERS_S:
                self._refuse(self._leaving.seq, self._leaving.error or TimedOut("what was asked for was not answered in time"))
        elif not self._greeted:
            limit_s = self._listener.limits.greeting_s
            if now_s - self._since_s >= limit_s:
                missing = "PROOF" if self.session.state is GREETED else "HELLO"
                self._refuse(0, TimedOut(f"no {missing} came within {limit_s:g} s"))
        elif not self._writable:
            self._check_taking(now_s)
        elif self._reading:
            self._check_arrival(now_s)
        if self._held:
            self._hold()

    def revoked(self) -> None:
        """The access token of this connection does not count any more."""
        if not self._ended:
            self._refuse(0, AuthFailed("the access token of this connection was revoked or changed"))

    def _check_arrival(self, now_s: float) -> None:
        """A frame that began must go on to come, and there must be a sign of life; that of a worker's keeper counts."""
        limits, age_s, size = self._listener.limits, now_s - self._part_since_s, self._decoder.buffered_bytes
        if size and age_s >= limits.frame_s and size < age_s * limits.rate_bytes_min:
            self._refuse(0, TimedOut(f"{size} bytes of a frame came in {age_s:.0f} s; {limits.rate_bytes_min} a second are the least"))
        elif now_s - self._heard_s >= limits.silence_s and not self._is_kept(limits.silence_s):
            self._refuse(0, TimedOut(f"nothing was heard for {limits.silence_s:g} s, no heartbeat either"))

    def _is_kept(self, silence_s: float) -> bool:
        consumer = self.session.consumer
        return consumer is not None and self._listener.now_ms() - consumer.heard_ms < silence_s * 1000

    def _check_taking(self, now_s: float) -> None:
        """A peer whose answers pile up takes them at a pace, or it is cut off."""
        waiting = self._transport.get_write_buffer_size()
        if self._unread.is_slow(now_s, waiting, self._listener.limits):
            log.warning("connection %d does not read what it asked for and is cut off: %d bytes wait", self.session.origin, waiting)
            self._refuse(0, SlowConsumer())

    # ---- memory --------------------------------------------------------------------------------------------------------------------

    def held_bytes(self) -> int:
        """What is in memory because the peer has not sent the rest, or not taken what was sent."""
        unread = 0 if self._transport is None else self._transport.get_write_buffer_size()
        return max(self._decoder.buffered_bytes, self._chunk_bytes if self._frames else 0) + unread

    def _hold(self) -> None:
        size = self.held_bytes()
        if size != self._held:
            more, self._held = size - self._held, size
            if not self._greeted:
                self._listener.hold_before_greeting(more)
            self._listener.doors.hold(self, size)

    def cut(self) -> None:
        """All connections together hold too much, and this one holds most."""
        if not self._greeted:
            self._listener.hold_before_greeting(-self._held)
        self._held = 0
        if self._transport is None:
            return
        log.warning("connection %d holds %d bytes, more than any other, and is cut off to save memory", self.session.origin, self.held_bytes())
        if self._transport.get_write_buffer_size() > WRITE_BUFFER_BYTES[1]:
            self.session.lost(self._listener.now_ms())
            self.abort()
        else:
            self._refuse(0, Overloaded("too much memory is held for requests that are not whole yet; send it again later", retry_after_ms=1_000))

    def turn_away(self, refusal: TaskqError) -> None:
        """There is no place for this connection."""
        self._refuse(0, refusal)
        if self._listener.doors.crowded and self._transport is not None:
            self._transport.close()

    @property
    def age_s(self) -> float:
        return self._listener.time() - self._since_s

    def make_room(self) -> bool:
        """End before the greeting, for the sake of others, unless the peer came only now; whether it does."""
        if self._transport is None or self.age_s < SPARED_S:
            return False
        self.turn_away(TooManyConnections("there was no HELLO, and the place is needed", retry_after_ms=RETRY_MS))
        self._transport.close()
        self._arrival.end()
        return True

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
