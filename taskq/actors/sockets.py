"""Listening sockets, for both doors."""

from __future__ import annotations

import asyncio
import errno
import ssl
from collections.abc import Callable
from typing import Any

from taskq.actors.certificate import HANDSHAKE_S, SHUTDOWN_S

LOOPBACKS = ("127.0.0.1", "::1")
# what ::1 gives on a machine without IPv6; newer versions of asyncio say it without a number
NO_IPV6 = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EINVAL, None})


async def bind(
    protocol: Callable[[], asyncio.BaseProtocol], host: str, port: int, backlog: int, tls: ssl.SSLContext | None = None
) -> list[asyncio.Server]:
    """Listen at this address; port 0 takes a free one.  "localhost" means both loopbacks, on the same port, as far as the machine has them.
    With `tls` a connection is made known to its protocol after the handshake.  OSError if an address cannot be bound; nothing listens then."""
    loop = asyncio.get_running_loop()
    options: dict[str, Any] = {"backlog": backlog}
    if tls is not None:
        options |= {"ssl": tls, "ssl_handshake_timeout": HANDSHAKE_S, "ssl_shutdown_timeout": SHUTDOWN_S}
    first, *others = LOOPBACKS if host == "localhost" else (host,)
    servers = [await loop.create_server(protocol, first, port, **options)]
    for other in others:
        try:
            servers.append(await loop.create_server(protocol, other, addresses(servers)[0][1], **options))
        except OSError as error:
            if port and error.errno not in NO_IPV6:
                for server in servers:
                    server.close()
                raise
    return servers


def addresses(servers: list[asyncio.Server]) -> list[tuple[str, int]]:
    """(host, port) of each listening socket."""
    return [socket.getsockname()[:2] for server in servers for socket in server.sockets]
