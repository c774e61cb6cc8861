"""Listening sockets, for both doors."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable

LOOPBACKS = ("127.0.0.1", "::1")
# what ::1 gives on a machine without IPv6; newer versions of asyncio say it without a number
NO_IPV6 = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EINVAL, None})


async def bind(protocol: Callable[[], asyncio.BaseProtocol], host: str, port: int, backlog: int) -> list[asyncio.Server]:
    """Listen at this address; port 0 takes a free one.  "localhost" means both loopbacks, on the same port, as far as the machine has them.
    OSError if an address cannot be bound; nothing listens then."""
    loop = asyncio.get_running_loop()
    first, *others = LOOPBACKS if host == "localhost" else (host,)
    servers = [await loop.create_server(protocol, first, port, backlog=backlog)]
    for other in others:
        try:
            servers.append(await loop.create_server(protocol, other, addresses(servers)[0][1], backlog=backlog))
        except OSError as error:
            if port and error.errno not in NO_IPV6:
                for server in servers:
                    server.close()
                raise
    return servers


def addresses(servers: list[asyncio.Server]) -> list[tuple[str, int]]:
    """(host, port) of each listening socket."""
    return [socket.getsockname()[:2] for server in servers for socket in server.sockets]
