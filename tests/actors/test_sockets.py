"""The addresses of both doors."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Any

import pytest

from taskq.actors.acceptor import Acceptor
from taskq.actors.doors import Crowd, Doors
from taskq.actors.sockets import addresses, bind


async def bound(host: str, port: int) -> list[Acceptor]:
    return await bind(lambda arrival: asyncio.Protocol(), Crowd(Doors(10, 1 << 20), 10, 10), host, port, 1)


async def test_localhost_is_both_loopbacks_on_one_port_as_far_as_the_machine_has_them() -> None:
    servers = await bound("localhost", 0)
    hosts, ports = zip(*addresses(servers), strict=True)
    assert hosts[0] == "127.0.0.1"
    assert set(hosts) <= {"127.0.0.1", "::1"}
    assert len(set(ports)) == 1
    for server in servers:
        await server.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(("number", "is_fine"), [(errno.EADDRNOTAVAIL, True), (None, True), (errno.EADDRINUSE, False)])
async def test_a_second_loopback_that_another_program_has_is_an_error_and_one_that_is_missing_is_none(
    monkeypatch: pytest.MonkeyPatch, number: int | None, is_fine: bool
) -> None:
    port, create_server = free_port(), socket.create_server

    def create(address: tuple[str, int], **options: Any) -> Any:
        if address[0] == "::1":
            raise OSError(number, "no") if number else OSError("could not bind on any address")
        return create_server(address, **options)

    monkeypatch.setattr(socket, "create_server", create)
    if is_fine:
        servers = await bound("localhost", port)
        assert addresses(servers) == [("127.0.0.1", port)]
        await servers[0].close()
        return
    with pytest.raises(OSError, match="no"):
        await bound("localhost", port)
    monkeypatch.undo()
    [server] = await bound("127.0.0.1", port)
    await server.close()
