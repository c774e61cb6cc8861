"""Connections from the moment that they are accepted: counted before any handshake, thinned, refused, and no reason to end when files run out."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from certificates import issue

from taskq.actors import acceptor as module
from taskq.actors import quiet
from taskq.actors.acceptor import Acceptor, Arrival
from taskq.actors.certificate import server_context
from taskq.actors.doors import Crowd, Doors
from taskq.actors.sockets import bind

WAIT_S = 10.0
# files that a loop opens when it needs them first
OWN_OF_LOOP = 2


class Peer(asyncio.Protocol):
    """The broker's side of one connection."""

    def __init__(self, house: House, arrival: Arrival) -> None:
        self.house = house
        self.arrival = arrival

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.house.made.append(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.arrival.end()


class House:
    def __init__(self, doors: Doors, crowd: Crowd) -> None:
        self.doors = doors
        self.crowd = crowd
        self.made: list[Peer] = []
        self.acceptor: Acceptor

    async def connect(self) -> socket.socket:
        connection = socket.socket()
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, self.acceptor.address)
        return connection


async def until(found: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not found():
            await asyncio.sleep(0.005)


async def is_closed(connection: socket.socket) -> bool:
    """Wait until the other side has ended it."""
    with suppress(ConnectionError):
        return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(connection, 1), WAIT_S) == b""
    return True


Open = Callable[..., Any]


@pytest.fixture
async def open_house(tmp_path: Path) -> AsyncIterator[Open]:
    async with AsyncExitStack() as stack:

        async def open_house(files: int = 1_000, most: int = 1_000, tls: bool = False, handshakes_max: int = 1_000) -> House:
            doors = Doors(files, 1 << 20)
            house = House(doors, Crowd(doors, most, 1_000))
            context = server_context(*issue(tmp_path).settings.values()) if tls else None
            [house.acceptor] = await bind(
                lambda arrival: Peer(house, arrival), house.crowd, "127.0.0.1", 0, 100, context, handshakes_max=handshakes_max
            )
            stack.push_async_callback(house.acceptor.close)
            stack.callback(lambda: [peer.transport.abort() for peer in house.made])
            return house

        yield open_house


@pytest.mark.parametrize("tls", [False, True])
async def test_a_connection_is_counted_before_it_has_said_a_word(open_house: Open, tls: bool) -> None:
    house = await open_house(tls=tls)
    silent = [await house.connect() for _ in range(20)]
    await until(lambda: house.doors.files == 20)
    assert bool(house.made) is not tls
    for connection in silent:
        connection.close()
    await until(lambda: house.doors.files == house.crowd.count == 0)


async def test_a_handshake_that_fails_gives_its_place_and_its_file_back(open_house: Open) -> None:
    house = await open_house(tls=True)
    before = len(os.listdir("/proc/self/fd"))
    for said in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", bytes(1_000)):
        for _ in range(5):
            connection = await house.connect()
            with suppress(ConnectionError):
                await asyncio.get_running_loop().sock_sendall(connection, said)
            connection.close()
    await until(lambda: house.doors.files == 0 and len(os.listdir("/proc/self/fd")) <= before + OWN_OF_LOOP)
    assert not house.made


async def test_of_handshakes_that_do_not_go_on_the_oldest_make_room(open_house: Open) -> None:
    house = await open_house(tls=True, handshakes_max=3)
    silent = [await house.connect() for _ in range(8)]
    for connection in silent[:5]:
        assert await is_closed(connection)
    await until(lambda: house.doors.files == 3)
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection(*house.acceptor.address, ssl=trusting)
    await until(lambda: len(house.made) == 1)
    writer.close()
    for connection in silent:
        connection.close()


async def test_who_is_refused_can_be_told_why_until_files_run_out_and_is_closed_unheard_then(open_house: Open) -> None:
    house = await open_house(files=4)
    connections = [await house.connect() for _ in range(60)]
    await until(lambda: len(house.made) >= 6)
    for connection in connections[-40:]:
        assert await is_closed(connection)
    assert house.doors.files <= 4 + 2 + 1
    refusals = [peer.arrival.refusal for peer in house.made]
    assert [refusal is None for refusal in refusals] == [True] * 4 + [False] * (len(refusals) - 4)
    assert "no open files for more" in refusals[4].message
    for connection in connections:
        connection.close()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
async def test_without_files_it_waits_and_goes_on(
    open_house: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    monkeypatch.setattr(module, "PAUSE_S", 0.02)
    house = await open_house()

    class Empty:
        """The listening socket where there are no files."""

        tries = 0

        def __init__(self, real: socket.socket) -> None:
            self.real = real

        def accept(self) -> Any:
            self.tries += 1
            raise OSError(number, os.strerror(number))

        def __getattr__(self, name: str) -> Any:
            return getattr(self.real, name)

    real = house.acceptor._socket
    house.acceptor._socket = empty = Empty(real)
    connection = await house.connect()
    await until(lambda: empty.tries >= 3)
    assert sum("could not be accepted" in record.message for record in caplog.records) == 1
    house.acceptor._socket = real
    await until(lambda: len(house.made) == 1)
    connection.close()


async def test_closing_leaves_no_handshake_behind(open_house: Open) -> None:
    house = await open_house(tls=True)
    silent = [await house.connect() for _ in range(5)]
    await until(lambda: house.doors.files == 5)
    await asyncio.wait_for(house.acceptor.close(), WAIT_S)
    assert house.doors.files == 0
    for connection in silent:
        connection.close()


def test_a_full_door_asks_for_room_and_full_files_ask_every_door() -> None:
    doors = Doors(3, 1 << 20)
    tcp, web = Crowd(doors, 2, 10), Crowd(doors, 10, 10)
    tcp.make_room = lambda: tcp.leave("", False) if tcp.count else None
    assert [tcp.enter("") for _ in range(5)] == [None] * 5
    assert tcp.count == 2
    assert [web.enter("") is None for _ in range(5)] == [True, True, True, False, False]
    assert tcp.count == 0


class Idler:
    def __init__(self) -> None:
        self.ended = 0

    def make_room(self) -> None:
        self.ended += 1


async def test_the_oldest_of_those_that_ask_nothing_go_and_those_that_asked_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quiet, "THIN_S", 0.0)
    found, idlers = quiet.Quiet(asyncio.get_running_loop(), 3), [Idler() for _ in range(40)]
    for idler in idlers[:10]:
        found.enter(idler)
        found.leave(idler)
        found.rests(idler)
    for idler in idlers[10:]:
        found.enter(idler)
    await until(lambda: idlers[36].ended == 1)
    assert [idler.ended for idler in idlers] == [0] * 10 + [1] * 27 + [0] * 3


async def test_room_is_made_by_who_is_idle_for_longest_and_not_only_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    found, first, second = quiet.Quiet(asyncio.get_running_loop(), 3), Idler(), Idler()
    found.make_room()
    for idler in (first, second, first):
        found.enter(idler)
    found.make_room()
    assert first.ended + second.ended == 0
    monkeypatch.setattr(quiet, "SPARED_S", 0.0)
    found.make_room()
    assert (first.ended, second.ended) == (0, 1)
