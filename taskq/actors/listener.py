"""The TCP door: the listening sockets and the connections behind them.

It hands each connection an origin, by which the replies of the shards find it, writes once a turn for all connections, and looks at their
deadlines once a second.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Mapping

from taskq.actors.session import SessionActor, Tell
from taskq.actors.sockets import addresses, bind
from taskq.clock import Clock
from taskq.core.effects import Reply
from taskq.core.gate import FAILURES_MAX, AccessToken
from taskq.core.messages import Goaway
from taskq.core.session import House, Session
from taskq.errors import TaskqError, TooManyConnections

BACKLOG = 4_096
SWEEP_S = 1.0
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
        frame_bytes_max: int,
        connections_max: int,
    ) -> None:
        self.loop = loop
        self.frame_bytes_max = frame_bytes_max
        self.addresses: list[tuple[str, int]] = []
        self.now_ms = clock.now_ms
        self._house = house
        self._tell = tell
        self._new_origin = new_origin
        self._connections_max = connections_max
        self._servers: list[asyncio.Server] = []
        self._sessions: dict[int, SessionActor] = {}
        self._written: list[SessionActor] = []
        self._tokens: Mapping[str, AccessToken] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._gone = asyncio.Event()
        self._gone.set()

    def __len__(self) -> int:
        return len(self._sessions)

    async def listen(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        """Bind, see `sockets.bind`."""
        self._servers = await bind(self._connection, host, port, BACKLOG, tls)
        self.addresses = addresses(self._servers)

    def _connection(self) -> SessionActor:
        return SessionActor(Session(self._new_origin(), self._house), self, self._tell)

    # ---- called by connections -----------------------------------------------------------------------------------------------------

    def enter(self, session: SessionActor) -> TaskqError | None:
        """Take a connection on; why it is refused, if it is."""
        self._sessions[session.session.origin] = session
        self._gone.clear()
        if self._timer is None:
            self._timer = self.loop.call_later(SWEEP_S, self._sweep)
        return TooManyConnections(retry_after_ms=1_000) if len(self._sessions) > self._connections_max else None

    def leave(self, session: SessionActor) -> None:
        self._sessions.pop(session.session.origin, None)
        if not self._sessions:
            self._gone.set()

    def evict(self, origin: int) -> None:
        """A newer connection has taken over this one's session."""
        session = self._sessions.get(origin)
        if session is not None:
            session.abort()

    def has_failed_often(self, address: str) -> bool:
        """Count one more failed proof of this address."""
        gate = self._house.gate
        assert gate is not None
        failures = gate.failures.add(address, self.now_ms())
        if failures <= FAILURES_MAX:
            log.warning("a connection from %s could not prove its access token", address)
        return failures > FAILURES_MAX

    def flush_soon(self, session: SessionActor) -> None:
        if not self._written:
            self.loop.call_soon(self._flush)
        self._written.append(session)

    def _flush(self) -> None:
        sessions, self._written = self._written, []
        for session in sessions:
            session.flush()

    # ---- called by the node --------------------------------------------------------------------------------------------------------

    def answered(self, reply: Reply, now_ms: int) -> None:
        """A durable reply; that for a connection which is gone goes nowhere."""
        session = self._sessions.get(reply.origin)
        if session is not None:
            session.answered(reply, now_ms)

    def go_away(self, message: Goaway) -> None:
        for session in self._sessions.values():
            session.push(message)

    def _sweep(self) -> None:
        now_s = self.loop.time()
        for session in list(self._sessions.values()):
            session.sweep(now_s)
        if self._house.gate is not None:
            self._end_revoked(self._house.gate.tokens())
        self._timer = self.loop.call_later(SWEEP_S, self._sweep) if self._sessions else None

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
        for server in self._servers:
            server.close()
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
