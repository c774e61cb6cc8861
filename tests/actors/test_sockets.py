"""The addresses of both doors."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Any

import pytest

from taskq.actors.sockets import addresses, bind


async def test_localhost_is_both_loopbacks_on_one_port_as_far_as_the_machine_has_them() -> None:
    servers = await bind(asyncio.Protocol, "localhost", 0, 1)
    hosts, ports = zip(*addresses(servers), strict=True)
    assert hosts[0] == "127.0.0.1"
    assert set(hosts) <= {"127.0.0.1", "::1"}
    assert len(set(ports)) == 1
    for server in servers:
        server.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(("number", "is_fine"), [(errno.EADDRNOTAVAIL, True), (None, True), (errno.EADDRINUSE, False)])
async def test_a_second_loopback_that_another_program_has_is_an_error_and_one_that_is_missing_is_none(
    monkeypatch: pytest.MonkeyPatch, number: int | None, is_fine: bool
) -> None:
    loop, port = asyncio.get_running_loop(), free_port()

    class Loop:
        async def create_server(self, protocol: Any, host: str, port: int, **options: Any) -> Any:
            if host == "::1":
                raise OSError(number, "no") if number else OSError("could not bind on any address")
            return await loop.create_server(protocol, host, port, **options)

    monkeypatch.setattr(asyncio, "get_running_loop", Loop)
    if is_fine:
        servers = await bind(asyncio.Protocol, "localhost", port, 1)
        assert addresses(servers) == [("127.0.0.1", port)]
        servers[0].close()
        return
    with pytest.raises(OSError, match="no"):
        await bind(asyncio.Protocol, "localhost", port, 1)
    monkeypatch.undo()
    server = await loop.create_server(asyncio.Protocol, "127.0.0.1", port)
    server.close()
