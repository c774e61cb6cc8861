"""Acceptor: takes the connections of one listening socket, and counts each from the moment that it is accepted, its TLS handshake included.

    kernel ──accept──► Arrival (counted by its Crowd) ──► [TLS handshake] ──► protocol(arrival) ──connection_lost──► arrival.end()

Rules:
- Who is refused may still read why, as long as there are files for that; after that it is closed unheard.
- Of handshakes that are not done, the oldest makes room when there are too many: a flood of them keeps nobody out.
- When the process, or the machine, has no files left, nothing is accepted for a moment.  It is no reason to end.
- A turn of the loop accepts a few connections only, so that a storm of them starves nobody.

The event loops accept by themselves too, but tell of a connection only after its handshake, and one of them closes the door for ever when files run
out.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, TypeAlias

from taskq.actors.doors import Crowd, place_of

ACCEPTS_A_TURN = 16
PAUSE_S = 0.2
COMPLAIN_S = 10.0

log = logging.getLogger("taskq.doors")


class Arrival:
    """A connection as its crowd counts it; without one nobody does.  `refusal`: why it is not taken on, None if it is."""

    def __init__(self, crowd: Crowd | None = None, place: str = "") -> None:
        self.refusal = None if crowd is None else crowd.enter(place)
        self._crowd = crowd
        self._place = place

    def end(self) -> None:
        """It is gone, or as good as gone; said once or more."""
        crowd, self._crowd = self._crowd, None
        if crowd is not None:
            crowd.leave(self._place, self.refusal is not None)


Protocol: TypeAlias = Callable[[Arrival], asyncio.BaseProtocol]


class Acceptor:
    """See the module.  `tls`: how the loop is to speak TLS, nothing for plain connections."""

    def __init__(self, listening: socket.socket, protocol: Protocol, crowd: Crowd, tls: Mapping[str, Any], handshakes_max: int) -> None:
        self.address: tuple[str, int] = listening.getsockname()[:2]
        self._loop = asyncio.get_running_loop()
        self._socket = listening
        self._protocol = protocol
        self._crowd = crowd
        self._tls = tls
        self._handshakes_max = handshakes_max
        self._unmade: set[asyncio.Task[None]] = set()
        self._handshakes: dict[asyncio.Task[None], socket.socket] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._complained_s = -COMPLAIN_S
        listening.setblocking(False)
        self._loop.add_reader(listening.fileno(), self._accept)

    async def close(self) -> None:
        """Accept no more; connections that are not made yet will not be, or are made when this returns."""
        if self._socket.fileno() < 0:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        while self._handshakes:
            self._end_oldest()
        if self._unmade:
            await asyncio.wait(self._unmade)

    def _accept(self) -> None:
        for _ in range(ACCEPTS_A_TURN):
            try:
                accepted, peer = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._pause(error)
                return
            self._take(accepted, place_of(peer))

    def _pause(self, error: OSError) -> None:
        self._loop.remove_reader(self._socket.fileno())
        self._timer = self._loop.call_later(PAUSE_S, self._go_on)
        if self._loop.time() - self._complained_s >= COMPLAIN_S:
            self._complained_s = self._loop.time()
            log.warning("a connection could not be accepted: %s; it waits, and those that are open go on", error.strerror)

    def _go_on(self) -> None:
        self._timer = None
        self._loop.add_reader(self._socket.fileno(), self._accept)

    def _take(self, accepted: socket.socket, place: str) -> None:
        arrival = Arrival(self._crowd, place)
        if arrival.refusal is not None and self._crowd.doors.crowded:
            arrival.end()
            accepted.close()
            return
        accepted.setblocking(False)
        making = self._loop.create_task(self._make(accepted, arrival))
        self._unmade.add(making)
        making.add_done_callback(self._made)
        if self._tls:
            self._handshakes[making] = accepted
            if len(self._handshakes) > self._handshakes_max:
                self._end_oldest()

    def _made(self, making: asyncio.Task[None]) -> None:
        self._unmade.discard(making)
        self._handshakes.pop(making, None)

    def _end_oldest(self) -> None:
        """The loop sees the end of what the peer sends, and cleans up."""
        oldest = next(iter(self._handshakes))
        with suppress(OSError):
            self._handshakes.pop(oldest).shutdown(socket.SHUT_RDWR)

    async def _make(self, accepted: socket.socket, arrival: Arrival) -> None:
        """A handshake that fails, or takes too long, is the peer's affair."""
        try:
            await self._loop.connect_accepted_socket(partial(self._protocol, arrival), accepted, **self._tls)
        except (OSError, ssl.CertificateError):
            arrival.end()
        except BaseException:
            arrival.end()
            raise
