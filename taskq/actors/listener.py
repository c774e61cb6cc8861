"""The TCP door: the listening sockets and the connections behind them.

It hands each connection an origin, by which the replies of the shards find it, writes once a turn for all connections, and looks at the
deadlines of each every SWEEP_S, of a part of them at a time.  A time in which this process stood still is nobody's fault and counts for no
deadline.

A connection over the limits is refused when it comes.  Those that have not said HELLO are another matter: a flood of them would keep out everybody
else, so the oldest makes room, a moment after it came.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Iterable, Mapping

from taskq.actors.acceptor import Acceptor, Arrival
from taskq.actors.doors import RETRY_MS, Crowd, Doors, TcpLimits
from taskq.actors.session import GREETING_BYTES_MAX, SessionActor, Tell
from taskq.actors.slices import Slices
from taskq.actors.sockets import addresses, bind
from taskq.clock import Clock
from taskq.core.effects import Reply
from taskq.core.gate import FAILURES_MAX, AccessToken
from taskq.core.house import House
from taskq.core.messages import Goaway
from taskq.core.session import Session
from taskq.errors import ProtocolError, TooManyConnections

INBOX_BYTES = 256 << 10
BACKLOG = 4_096
SWEEP_S = 0.5
PARTS = 5
# how long a new connection may take to say HELLO before it is sent away as the oldest of too many
THIN_S = 0.1
# a turn that comes so late means that the process stood still
LATE_S = 1.0
CLOSE_S = 5.0

log = logging.getLogger("taskq.session")


class Listener:
    """See the module."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        house: House,
        clock: Clock,
        tell: Tell,
        new_origin: Callable[[], int],
        limits: TcpLimits,
        doors: Doors,
    ) -> None:
        self.loop = loop
        self.limits = limits
        self.doors = doors
        self.addresses: list[tuple[str, int]] = []
        self.slices = Slices(loop)
        self.now_ms = clock.steady_ms
        self.inbox = memoryview(bytearray(INBOX_BYTES))
        self._house = house
        self._tell = tell
        self._new_origin = new_origin
        self._crowd = Crowd(doors, limits.connections_max, limits.address_connections_max)
        self._crowd.make_room = self._make_room
        self._acceptors: list[Acceptor] = []
        self._sessions: dict[int, SessionActor] = {}
        self._greeting: dict[SessionActor, None] = {}
        self._greeting_bytes = 0
        self._thinning = False
        self._written: list[SessionActor] = []
        self._answering = False
        self._tokens: Mapping[str, AccessToken] = {}
        self._parts: list[dict[int, SessionActor]] = [{} for _ in range(PARTS)]
        self._part = 0
        self._due_s = self._skipped_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._gone = asyncio.Event()
        self._gone.set()

    def __len__(self) -> int:
        return len(self._sessions)

    async def listen(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        """Bind, see `sockets.bind`."""
        most = self.limits.greeting_connections_max
        self._acceptors = await bind(self._connection, self._crowd, host, port, BACKLOG, tls, handshakes_max=most)
        self.addresses = addresses(self._acceptors)

    def _connection(self, arrival: Arrival) -> SessionActor:
        return SessionActor(Session(self._new_origin(), self._house), self, self._tell, arrival)

    # ---- called by connections -----------------------------------------------------------------------------------------------------

    def time(self) -> float:
        """Seconds on a clock that stands still while this process does."""
        return self.loop.time() - self._skipped_s

    def enter(self, session: SessionActor, is_taken_on: bool) -> None:
        """A connection is made."""
        origin = session.session.origin
        self._sessions[origin] = self._parts[origin % PARTS][origin] = session
        self._gone.clear()
        if self._timer is None:
            self._arm()
        if is_taken_on:
            self._greeting[session] = None
            if len(self._greeting) > self.limits.greeting_connections_max:
                self._thin_soon()

    def greeted(self, session: SessionActor, held_bytes: int) -> None:
        self._greeting.pop(session, None)
        self._greeting_bytes -= held_bytes

    def hold_before_greeting(self, more_bytes: int) -> None:
        """Nobody has said yet who sent these."""
        self._greeting_bytes += more_bytes
        if more_bytes > 0 and self._greeting_bytes > GREETING_BYTES_MAX * self.limits.greeting_connections_max:
            self.loop.call_soon(self._thin)

    def _thin_soon(self) -> None:
        if not self._thinning:
            self._thinning = True
            self.loop.call_later(THIN_S, self._thin)

    def _thin(self) -> None:
        """Send the oldest of those away that have not said HELLO, until there are few enough."""
        self._thinning = False
        most, most_bytes = self.limits.greeting_connections_max, GREETING_BYTES_MAX * self.limits.greeting_connections_max
        while self._greeting and (len(self._greeting) > most or self._greeting_bytes > most_bytes):
            session = next(iter(self._greeting))
            if self._greeting_bytes <= most_bytes and session.age_s < THIN_S:
                self._thin_soon()
                return
            del self._greeting[session]
            session.turn_away(TooManyConnections("too many connections that have not said HELLO", retry_after_ms=RETRY_MS))

    def _make_room(self) -> None:
        """The oldest of those that have not said HELLO goes."""
        session = next(iter(self._greeting), None)
        if session is not None and session.make_room():
            self._greeting.pop(session, None)

    def leave(self, session: SessionActor) -> None:
        origin = session.session.origin
        self._sessions.pop(origin, None)
        self._parts[origin % PARTS].pop(origin, None)
        self._greeting.pop(session, None)
        if not self._sessions:
            self._gone.set()

    def evict(self, origin: int, why: ProtocolError) -> None:
        """The session of this connection is over, or another connection's now."""
        session = self._sessions.get(origin)
        if session is not None:
            session.evicted(why)

    def has_failed_often(self, address: str) -> bool:
        """Count one more failed proof of this address."""
        gate = self._house.gate
        assert gate is not None
        failures = gate.failures.add(address, self.now_ms())
        if failures <= FAILURES_MAX:
            log.warning("a connection from %s could not prove its access token", address)
        return failures > FAILURES_MAX

    def flush_soon(self, session: SessionActor) -> None:
        if not self._written and not self._answering:
            self.loop.call_soon(self._flush)
        self._written.append(session)

    def _flush(self) -> None:
        """Workers first: a task that starts sooner matters more than an answer that comes sooner."""
        sessions, self._written = self._written, []
        sessions.sort(key=lambda session: session.session.role != "worker")
        for session in sessions:
            session.flush()

    # ---- called by the node --------------------------------------------------------------------------------------------------------

    def answered(self, replies: Iterable[Reply], now_ms: int) -> None:
        """Replies that are durable leave at once; those for a connection which is gone go nowhere."""
        self._answering = True
        for reply in replies:
            session = self._sessions.get(reply.origin)
            if session is not None:
                session.answered(reply, now_ms)
        self._answering = False
        self._flush()

    def go_away(self, message: Goaway) -> None:
        for session in self._sessions.values():
            session.push(message)

    def _arm(self) -> None:
        self._due_s = self.loop.time() + SWEEP_S / PARTS
        self._timer = self.loop.call_at(self._due_s, self._sweep)

    def _sweep(self) -> None:
        late_s = self.loop.time() - self._due_s
        if late_s > LATE_S:
            self._skipped_s += late_s
        now_s = self.time()
        self._part = (self._part + 1) % PARTS
        for session in list(self._parts[self._part].values()):
            session.sweep(now_s)
        if self._house.gate is not None:
            self._end_revoked(self._house.gate.tokens())
        self._timer = None
        if self._sessions:
            self._arm()

    def _end_revoked(self, tokens: Mapping[str, AccessToken]) -> None:
        """When the tokens have changed, close what a token opened that is not the same any more."""
        if tokens is self._tokens:
            return
        self._tokens = tokens
        for session in list(self._sessions.values()):
            grant = session.session.grant
            if grant is not None and (grant.name not in tokens or tokens[grant.name].grant is not grant):
                session.revoked()

    async def close(self) -> None:
        """Accept no more, close all connections after what was written to them has left; who has not taken it within CLOSE_S is cut off."""
        for acceptor in self._acceptors:
            await acceptor.close()
        for each in (SessionActor.close, SessionActor.abort):
            for session in list(self._sessions.values()):
                each(session)
            try:
                await asyncio.wait_for(self._gone.wait(), CLOSE_S)
                break
            except TimeoutError:
                continue
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
