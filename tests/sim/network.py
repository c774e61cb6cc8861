"""Connections between processes, on a virtual loop: bytes arrive in order, late and in pieces; connections break, on both sides or on one.

The transports have what asyncio's have, so sessions and channels use them as they would sockets.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

from sim.loop import ROUND_S, Process, VirtualLoop

from taskq.actors.acceptor import Arrival
from taskq.actors.doors import Crowd

DELAY_S = (0.0, 0.004)
SLOW_S = (0.05, 1.5)
NOTICE_S = (0.0, 0.3)
UNNOTICED_S = (5.0, 60.0)


class Transport(asyncio.Transport):
    """One end of a connection.  `times`: so often the next whole frames that are written here arrive."""

    def __init__(self, network: Network, process: Process, protocol: Any) -> None:
        super().__init__()
        self.network, self.process, self.protocol = network, process, protocol
        self.peer: Transport
        self.deaf = False
        self.times = 1
        self._closing = self._ended = self._paused = False
        self._arrives_at = 0.0
        self._unread: list[bytes] = []

    # ---- what a protocol calls

    def writelines(self, buffers: Any) -> None:
        times, self.times = self.times, 1
        self.write(b"".join(buffers) * times)

    def write(self, data: Any) -> None:
        if not self._closing:
            for piece in self.network.cut(bytes(data)):
                self._to_peer(self.peer._arrive, piece)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._to_peer(self.peer._eof)

    def is_closing(self) -> bool:
        return self._closing

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """The network takes everything."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        while self._unread and not self._paused:
            self.protocol.data_received(self._unread.pop(0))

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._to_peer(self.peer._eof)
            self.end(0.0, None)

    def abort(self) -> None:
        if not self._closing:
            self._closing = True
            self.peer.end(self.network.pick(NOTICE_S), ConnectionResetError("reset by peer"))
            self.end(0.0, None)

    # ---- what the network calls

    def _to_peer(self, callback: Callable[..., object], *args: Any) -> None:
        """After all that was sent before."""
        network = self.network
        self._arrives_at = max(self._arrives_at + ROUND_S, network.loop.seconds + network.delay())
        network.loop.call_at(self._arrives_at, callback, *args, context=self.peer.process.context)

    def _arrive(self, data: bytes) -> None:
        if self.deaf or self._ended or self.peer.process.silent:
            return
        if self._paused:
            self._unread.append(data)
        else:
            self.protocol.data_received(data)

    def _eof(self) -> None:
        if not self._ended and not self.deaf and not self._closing:
            self.close()

    def end(self, after_s: float, error: Exception | None) -> None:
        """This end notices that the connection is over."""
        self.network.loop.call_later(after_s, self._lost, error, context=self.process.context)

    def _lost(self, error: Exception | None) -> None:
        if not self._ended:
            self._ended = self._closing = True
            self.network.transports.pop(self, None)
            self.protocol.connection_lost(error)


class _Socket:
    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address

    def getsockname(self) -> tuple[str, int]:
        return self._address


class _Server:
    def __init__(self, network: Network, process: Process, factory: Callable[[], Any], address: tuple[str, int]) -> None:
        self.network, self.process, self.factory, self.address = network, process, factory, address
        self.sockets = [_Socket(address)]

    def close(self) -> None:
        if self.network.servers.get(self.address[1]) is self:
            del self.network.servers[self.address[1]]


class _Door:
    """In the place of an Acceptor: each connection is counted by its crowd, and there is nothing else to accept."""

    def __init__(self, server: _Server) -> None:
        self._server = server
        self.address = server.address

    async def close(self) -> None:
        self._server.close()


async def bind(
    protocol: Callable[[Arrival], Any], crowd: Crowd, host: str, port: int, backlog: int, tls: None = None, *, handshakes_max: int = 0
) -> list[_Door]:
    """In the place of `sockets.bind`."""
    loop: Any = asyncio.get_running_loop()
    return [_Door(await loop.create_server(lambda: protocol(Arrival(crowd, host)), host, port))]


class Network:
    """One server process with a few ports, any number of clients."""

    def __init__(self, loop: VirtualLoop, rng: random.Random) -> None:
        self.loop, self.rng = loop, rng
        self.servers: dict[int, _Server] = {}
        self.transports: dict[Transport, None] = {}
        self.unreachable: set[Process] = set()
        self.healed = False

    def pick(self, limits: tuple[float, float]) -> float:
        return self.rng.uniform(*limits)

    def delay(self) -> float:
        slow = not self.healed and self.rng.random() < 0.01
        return self.pick(SLOW_S if slow else DELAY_S)

    def cut(self, data: bytes) -> list[bytes]:
        """The stream in pieces, wherever they fall."""
        if len(data) < 2 or self.rng.random() < 0.7:
            return [data]
        cuts = sorted({self.rng.randrange(1, len(data)) for _ in range(self.rng.randrange(1, 4))})
        return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]

    def serve(self, process: Process, factory: Callable[[], Any], address: tuple[str, int]) -> _Server:
        server = self.servers[address[1]] = _Server(self, process, factory, address)
        return server

    async def connect(self, process: Process, factory: Callable[[], Any], port: int) -> tuple[Transport, Any]:
        await asyncio.sleep(self.delay())
        if process in self.unreachable:
            await self.loop.create_future()
        server = self.servers.get(port)
        if server is None or not server.process.alive:
            raise ConnectionRefusedError(111, "connection refused")
        near = Transport(self, process, factory())
        far = Transport(self, server.process, None)
        near.peer, far.peer = far, near
        self.transports.update({near: None, far: None})
        self.loop.call_soon(self._accept, server, far, context=server.process.context)
        near.protocol.connection_made(near)
        return near, near.protocol

    def _accept(self, server: _Server, far: Transport) -> None:
        far.protocol = server.factory()
        far.protocol.connection_made(far)

    # ---- faults

    def of(self, process: Process) -> list[Transport]:
        return [transport for transport in self.transports if transport.process is process]

    def break_off(self, process: Process) -> None:
        """The connections of a process are gone, what was on its way is lost.  One side may not notice for long."""
        for transport in self.of(process):
            ends = [transport, transport.peer]
            late = self.rng.choice([None, None, *ends])
            for end in ends:
                end.deaf = True
                end.end(self.pick(UNNOTICED_S if end is late else NOTICE_S), ConnectionResetError("reset by peer"))

    def isolate(self, process: Process) -> None:
        """Nothing gets through, and nobody is told."""
        self.unreachable.add(process)
        for transport in self.of(process):
            transport.deaf = transport.peer.deaf = True
            for end in (transport, transport.peer):
                end.end(self.pick(UNNOTICED_S), TimeoutError(110, "timed out"))

    def reach(self, process: Process) -> None:
        self.unreachable.discard(process)

    def died(self, process: Process, *, silently: bool) -> None:
        """A process is dead: the kernel closes its connections, unless its whole machine is gone, and what it sent last with it."""
        self.servers = {port: server for port, server in self.servers.items() if server.process is not process}
        process.silent = silently
        for transport in self.of(process):
            self.transports.pop(transport, None)
            transport.peer.end(self.pick(UNNOTICED_S if silently else NOTICE_S), ConnectionResetError("reset by peer"))
            if silently:
                transport.peer.deaf = True
