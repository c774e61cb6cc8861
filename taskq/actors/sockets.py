"""Listening sockets, for both doors."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from typing import Any

from taskq.actors.acceptor import Acceptor, Protocol
from taskq.actors.certificate import HANDSHAKE_S, SHUTDOWN_S
from taskq.actors.doors import Crowd

LOOPBACKS = ("127.0.0.1", "::1")
# what ::1 gives on a machine without IPv6
NO_IPV6 = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EINVAL, None})
# how a dead peer is noticed by the kernel: idle, between probes, probes
KEEPALIVE = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3)) if hasattr(socket, "TCP_KEEPIDLE") else ()


async def bind(
    protocol: Protocol, crowd: Crowd, host: str, port: int, backlog: int, tls: ssl.SSLContext | None = None, *, handshakes_max: int = 500
) -> list[Acceptor]:
    """Listen at this address; port 0 takes a free one.  "localhost" means both loopbacks, on the same port, as far as the machine has them.
    With `tls` a connection is made known to its protocol after the handshake.  OSError if an address cannot be bound; nothing listens then."""
    first, *others = LOOPBACKS if host == "localhost" else (host,)
    listening = await _listen(first, port, backlog)
    for other in others:
        try:
            listening += await _listen(other, listening[0].getsockname()[1], backlog)
        except OSError as error:
            if port and error.errno not in NO_IPV6:
                _close(listening)
                raise
    options: dict[str, Any] = {} if tls is None else {"ssl": tls, "ssl_handshake_timeout": HANDSHAKE_S, "ssl_shutdown_timeout": SHUTDOWN_S}
    return [Acceptor(each, protocol, crowd, options, handshakes_max) for each in listening]


async def _listen(host: str, port: int, backlog: int) -> list[socket.socket]:
    """A socket for each address of this host."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    listening: list[socket.socket] = []
    try:
        for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
            listening.append(socket.create_server(address, family=family, backlog=backlog))
    except OSError:
        _close(listening)
        raise
    return listening


def _close(listening: list[socket.socket]) -> None:
    for each in listening:
        each.close()


def addresses(acceptors: list[Acceptor]) -> list[tuple[str, int]]:
    """(host, port) of each listening socket."""
    return [acceptor.address for acceptor in acceptors]


def keep_alive(connection: Any) -> None:
    """A peer that is gone without a word is noticed within a minute."""
    if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE:
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
