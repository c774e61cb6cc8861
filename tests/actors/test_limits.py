"""The limits of both doors, each on a real broker with its setting made small: who goes over one is told so and ends, and nobody else notices."""

from __future__ import annotations

import asyncio
import socket
import statistics
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from actors.test_session import WAIT_S, Door, Peer, enqueue

from taskq import testing
from taskq.actors import doors as doors_module
from taskq.actors import listener as listener_module
from taskq.actors.doors import Crowd, Doors, TcpLimits, files_for_connections, place_of
from taskq.actors.unread import Unread
from taskq.core import messages as m
from taskq.core.session import Session
from taskq.protocol.codec import PREFIX, encode

HEAD = "POST /enqueue HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"
SLOW = {"frame_deadline": 0.4, "greeting_deadline": 0.4, "unread_deadline": 0.4}


@pytest.fixture
async def open_door() -> AsyncIterator[Callable[..., Any]]:
    async with AsyncExitStack() as stack:

        async def open_door(**settings: Any) -> Door:
            door = Door(await stack.enter_async_context(testing.broker(**settings)))
            stack.callback(lambda: [peer.writer.close() for peer in door.peers])
            return door

        yield open_door


async def http(door: Door, data: bytes) -> bytes:
    """Send this and read until the broker closes."""
    host, port = door.node.http.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(data)
        return await asyncio.wait_for(reader.read(), WAIT_S)
    finally:
        writer.close()


def frame(message: Any, seq: int = 1) -> bytes:
    return b"".join(bytes(part) for part in encode(message, seq))


def deaf(peer: Peer) -> None:
    peer.reader._transport.pause_reading()  # type: ignore[attr-defined]


def hears(peer: Peer) -> None:
    peer.reader._transport.resume_reading()  # type: ignore[attr-defined]


@asynccontextmanager
async def trickle(peer: Peer, data: bytes, pause_s: float = 0.05) -> AsyncIterator[None]:
    """Byte by byte, meanwhile."""

    async def send() -> None:
        for at in range(len(data)):
            if not peer.writer.is_closing():
                peer.writer.write(data[at : at + 1])
            await asyncio.sleep(pause_s)

    sending = asyncio.ensure_future(send())
    try:
        yield
    finally:
        sending.cancel()


Open = Callable[..., Any]


# ---- connections -------------------------------------------------------------------------------------------------------------------


async def test_on_both_doors_one_connection_too_many_is_told_so_and_the_others_go_on(open_door: Open) -> None:
    door = await open_door(connections_max=2)
    first, _ = await door.greet(), await door.greet()
    refused = await (await door.connect()).refused()
    assert (refused.code, refused.retryable, refused.retry_after_ms) == ("TOO_MANY_CONNECTIONS", True, 1_000)
    assert type(await first.ask(m.Heartbeat(), 2)) is m.Beat
    host, port = door.node.http.rsplit(":", 1)
    idle = [await asyncio.open_connection(host, int(port)) for _ in range(2)]
    assert b"503" in await http(door, b"") and idle
    for _, writer in idle:
        writer.close()


async def test_a_place_that_became_free_is_taken_by_the_next(open_door: Open) -> None:
    door = await open_door(connections_max=1)
    first = await door.greet()
    await (await door.connect()).refused()
    first.writer.close()
    await first.writer.wait_closed()
    while True:
        peer = await door.connect()
        if type(await peer.ask(m.Hello(1, "producer"))) is m.Welcome:
            break


async def test_of_those_that_do_not_greet_the_oldest_make_room(open_door: Open) -> None:
    door = await open_door(greeting_connections_max=3, greeting_deadline=60)
    greeted = await door.greet()
    silent = [await door.connect() for _ in range(5)]
    for peer in silent[:2]:
        assert (await peer.refused()).code == "TOO_MANY_CONNECTIONS"
    for peer in [greeted, *silent[2:]]:
        answer = await peer.ask(m.Heartbeat() if peer is greeted else m.Hello(1, "producer"), 2)
        assert type(answer) in (m.Beat, m.Welcome)


async def test_a_burst_of_clients_that_do_greet_is_let_in_whole(open_door: Open) -> None:
    door = await open_door(greeting_connections_max=3)
    peers = await asyncio.gather(*(door.greet() for _ in range(100)))
    assert len(door.node._listener) == len(peers) == 100


async def test_bytes_before_the_greeting_are_bounded_for_all_together(open_door: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "GREETING_BYTES_MAX", 2_000)
    door = await open_door(greeting_connections_max=3, greeting_deadline=60)
    peers = [await door.connect() for _ in range(2)]
    for peer in peers:
        peer.writer.write(PREFIX.pack(8_000, 1, 0, 1, 1, 7_000) + bytes(4_000))
    assert (await peers[0].refused()).code == "TOO_MANY_CONNECTIONS"


async def test_who_is_cut_before_its_greeting_counts_for_nothing_any_more(open_door: Open) -> None:
    door = await open_door(greeting_deadline=60)
    listener = door.node._listener
    peer = await door.connect()
    peer.writer.write(PREFIX.pack(8_000, 1, 0, 1, 1, 7_000) + bytes(4_000))
    while not listener._greeting_bytes:
        await door.greet()
    (session,) = listener._greeting
    session.cut()
    assert (await peer.refused()).code == "OVERLOADED"
    assert listener._greeting_bytes == 0


def test_connections_are_counted_by_address_and_by_network_and_loopback_is_not() -> None:
    crowd = Crowd(Doors(100, 1 << 20), connections_max=6, address_connections_max=2)
    assert [crowd.enter(place) is None for place in ("a", "a", "a", "b", "", "", "", "")] == [True, True, False, True, True, True, True, False]
    crowd.leave("a", True)
    crowd.leave("a", False)
    assert crowd.enter("a") is None


@pytest.mark.parametrize("files_max", [2, 100])
def test_nobody_makes_room_for_an_address_that_has_too_many(files_max: int) -> None:
    crowd = Crowd(Doors(files_max, 1 << 20), connections_max=2, address_connections_max=1)
    asked: list[str] = []
    crowd.make_room = lambda: asked.append("room")
    assert [crowd.enter(place) is None for place in ("a", "b")] == [True, True]
    refusal = crowd.enter("a")
    assert refusal is not None and "from this address" in refusal.message and not asked
    assert crowd.enter("c") is not None and asked


def test_files_are_counted_for_both_doors_together() -> None:
    doors = Doors(3, 1 << 20)
    tcp, web = Crowd(doors, 10, 10), Crowd(doors, 10, 10)
    assert [crowd.enter("") is None for crowd in (tcp, web, tcp, web, tcp)] == [True, True, True, False, False]
    tcp.leave("", True)
    web.leave("", True)
    tcp.leave("", False)
    assert web.enter("") is None


@pytest.mark.parametrize(
    ("peer", "place"),
    [
        (("127.0.0.1", 5), ""),
        (("127.3.2.1", 5), ""),
        (("::1", 5, 0, 0), ""),
        (("::ffff:127.0.0.1", 5, 0, 0), ""),
        (("192.0.2.7", 5), "192.0.2.7"),
        (("::ffff:192.0.2.7", 5, 0, 0), "192.0.2.7"),
        (("2001:db8:1:2:3:4:5:6", 5, 0, 0), "2001:db8:1:2::/64"),
        (("fe80::1%eth0", 5, 0, 2), "fe80::/64"),
        ("/run/socket", ""),
        (None, ""),
    ],
)
def test_the_place_of_a_peer(peer: Any, place: str) -> None:
    assert place_of(peer) == place


async def test_one_address_is_refused_while_others_come_in_on_both_doors(open_door: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    crowded = ["elsewhere"]
    monkeypatch.setattr("taskq.actors.acceptor.place_of", lambda peer: crowded[0])
    door = await open_door(address_connections_max=1)
    await door.greet()
    error = await (await door.connect()).refused()
    assert (error.code, "from this address" in error.message) == ("TOO_MANY_CONNECTIONS", True)
    host, port = door.node.http.rsplit(":", 1)
    _, writer = await asyncio.open_connection(host, int(port))
    assert b"TOO_MANY_CONNECTIONS" in await http(door, b"")
    crowded[0] = "here"
    await door.greet()
    writer.close()


def test_the_files_of_the_process_bound_the_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    for files, connections in ((20_000, 19_488), (1_024, 512), (100, 50)):
        monkeypatch.setattr(doors_module.resource, "getrlimit", lambda _, files=files: (files, files))
        assert files_for_connections() == connections


# ---- deadlines ---------------------------------------------------------------------------------------------------------------------


async def test_who_does_not_greet_in_time_is_sent_away(open_door: Open) -> None:
    peer = await (await open_door(**SLOW)).connect()
    error = await peer.refused()
    assert (error.code, "HELLO" in error.message) == ("TIMED_OUT", True)


async def test_a_greeting_byte_by_byte_does_not_move_its_deadline(open_door: Open) -> None:
    peer = await (await open_door(**SLOW)).connect()
    begin_s = time.monotonic()
    async with trickle(peer, frame(m.Hello(1, "producer", {"name": "x" * 200}))):
        assert (await peer.refused()).code == "TIMED_OUT"
    assert time.monotonic() - begin_s < 0.4 + 1


@pytest.mark.parametrize("at", [3, 10, 40, 400], ids=["length", "prefix", "head", "payload"])
async def test_a_frame_that_comes_byte_by_byte_is_cut_at_its_deadline(open_door: Open, at: int) -> None:
    door = await open_door(**SLOW)
    peer, other = await door.greet(), await door.greet()
    data = frame(enqueue(1, bytes(2_000)), 2)
    peer.writer.write(data[:at])
    async with trickle(peer, data[at:]):
        assert (await peer.refused()).code == "TIMED_OUT"
    assert type(await other.ask(m.Heartbeat(), 2)) is m.Beat


async def test_a_frame_that_comes_slowly_and_keeps_the_pace_is_taken(open_door: Open) -> None:
    door = await open_door(frame_deadline=0.2, rate_bytes_min=1_000)
    peer = await door.greet()
    data = frame(enqueue(1, bytes(20_000)), 2)
    for at in range(0, len(data), 1_000):
        peer.writer.write(data[at : at + 1_000])
        await asyncio.sleep(0.03)
    assert type(await peer.message()) is m.Enqueued


async def test_a_session_that_sends_nothing_is_closed_after_its_heartbeats(open_door: Open) -> None:
    door = await open_door(heartbeat=0.1, lease=0.5, heartbeats_missed_max=3)
    silent, alive = await door.greet(), await door.greet()
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            beats += 1
            assert type(await alive.ask(m.Heartbeat(), beats + 1)) is m.Beat
            await asyncio.sleep(0.1)

    beating = asyncio.ensure_future(beat())
    error = await silent.refused()
    assert (error.code, "heartbeat" in error.message) == ("TIMED_OUT", True)
    beating.cancel()
    assert beats > 2


async def test_a_silent_worker_whose_keeper_speaks_keeps_its_connection(open_door: Open) -> None:
    door = await open_door(heartbeat=0.1, lease=0.5, heartbeats_missed_max=3)
    keeper, worker, other = await door.greet("keeper"), await door.connect(), await door.greet()
    welcome = await worker.ask(m.Hello(1, "worker"))
    closed = asyncio.ensure_future(other.refused())
    seq = late = 1
    while late < 15:
        seq, late = seq + 1, late + closed.done()
        assert type(await keeper.ask(m.Keepalive(welcome.session, welcome.secret, 0), seq)) is m.Ok
        await asyncio.sleep(0.05)
    assert type(await worker.ask(m.Heartbeat(), 2)) is m.Beat


async def test_while_the_broker_stands_still_no_deadline_runs(open_door: Open) -> None:
    door = await open_door(heartbeat=0.5, lease=2, heartbeats_missed_max=3, greeting_deadline=1)
    peer, half, new = await door.greet(), await door.greet(), await door.connect()
    half.writer.write(PREFIX.pack(1_000, 1, 0, 1, 1, 10))
    await asyncio.sleep(0.2)
    time.sleep(1.8)
    assert type(await new.ask(m.Hello(1, "producer"))) is m.Welcome
    for seq in range(2, 32):
        assert type(await peer.ask(m.Heartbeat(), seq)) is m.Beat
        await asyncio.sleep(0.02)
    assert [each._ended for each in door.node._listener._sessions.values()] == [False] * 3


# ---- requests in progress ----------------------------------------------------------------------------------------------------------


async def test_no_more_requests_are_worked_on_than_the_limit_and_the_rest_waits(open_door: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    door = await open_door(requests_max=5)
    peer, other = await door.greet(), await door.greet()
    actor = next(iter(door.node._listener._sessions.values()))
    held: list[Any] = []
    answered = Session.answered
    monkeypatch.setattr(Session, "answered", lambda self, *reply: held.append((self, reply)) if self is actor.session else answered(self, *reply))
    peer.writer.write(b"".join(frame(enqueue(), seq) for seq in range(2, 102)))
    while len(held) < 5:
        await asyncio.sleep(0)
    for seq in range(2, 12):
        assert type(await other.ask(m.Heartbeat(), seq)) is m.Beat
    assert len(held) == 5 == actor.session.requests.working
    monkeypatch.undo()
    for session, reply in held:
        answered(session, *reply)
    actor._flush_soon()
    seqs = [(await peer.frame()).seq for _ in range(100)]
    assert seqs == list(range(2, 102))


async def test_waiting_for_tasks_is_no_work_and_blocks_nothing(open_door: Open) -> None:
    door = await open_door(requests_max=5)
    peer, worker = await door.greet(), await door.worker(credit=1, queues=("elsewhere",))
    made = await peer.ask(enqueue(50))
    for at in range(50):
        peer.send(m.Get(made.ids[16 * at : 16 * at + 16], 60_000), 100 + at)
    assert type(await peer.ask(m.Heartbeat(), 2)) is m.Beat
    assert type(await peer.ask(m.Cancel(made.ids), 3)) is m.Cancelled
    assert worker


@pytest.mark.parametrize("message", [m.Heartbeat(), m.Inspect("workers")], ids=["small", "long answers"])
async def test_a_flood_of_frames_is_handled_in_turns_between_which_others_are_served(open_door: Open, message: Any) -> None:
    door = await open_door()
    flooder, other = await door.greet(), await door.greet()
    deaf(flooder)
    flooder.writer.write(frame(message, 7) * 50_000)
    for seq in range(2, 7):
        assert type(await other.ask(m.Heartbeat(), seq)) is m.Beat
    (actor,) = [each for each in door.node._listener._sessions.values() if each._has_frames]
    assert not actor._reading


async def test_frames_that_wait_when_the_peer_has_sent_its_last_are_handled(open_door: Open) -> None:
    door = await open_door()
    peer, other = await door.greet(), await door.greet()
    peer.writer.write(b"".join(frame(enqueue(queue="last"), seq) for seq in range(2, 202)))
    peer.writer.write_eof()
    while await peer.frame() is not None:
        pass
    (row,) = [row for row in (await other.ask(m.Inspect("queues"), 2)).rows if row["queue"] == "last"]
    assert row["pending"] == 200


# ---- answers that are not read -------------------------------------------------------------------------------------------------------


async def test_who_does_not_read_its_answers_is_cut_off_and_its_tasks_go_to_others(open_door: Open) -> None:
    door = await open_door(**SLOW, heartbeat=0.1, lease=0.6, heartbeats_missed_max=100)
    producer, sleeper = await door.greet(), await door.worker(credit=1_000)
    deaf(sleeper)
    for seq in range(2, 22):
        await producer.ask(enqueue(1, bytes(1 << 20)), seq)
    while len(door.node._listener) > 1:
        await asyncio.sleep(0.02)
    hears(sleeper)
    message = await sleeper.message()
    while type(message) is m.Deliver:
        message = await sleeper.message()
    assert message is None or message.code == "SLOW_CONSUMER"
    other = await door.worker(credit=1_000)
    received = 0
    while received < 20:
        delivered = await other.message()
        assert type(delivered) is m.Deliver
        received += len(delivered.ids) // 16


async def test_one_large_answer_that_is_read_slowly_but_read_arrives_whole(open_door: Open) -> None:
    door = await open_door(unread_deadline=0.3, unread_bytes_max="256KiB", heartbeat=20, lease=60)
    peer = await door.greet()
    connection = peer.writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
    made = await peer.ask(enqueue(1, bytes(1 << 20)))
    for seq in range(2, 12):
        peer.send(m.Get(made.ids), seq)
    size = 0
    while size < 10 << 20:
        size += len(await asyncio.wait_for(peer.reader.read(200 << 10), WAIT_S))
        await asyncio.sleep(0.02)
    assert size >= 10 << 20


def test_how_slow_is_too_slow() -> None:
    limits = TcpLimits(unread_s=10, unread_bytes_max=1_000_000, rate_bytes_min=100)
    unread = Unread()
    unread.begin(0, 500_000)
    unread.added_bytes += 500
    assert not unread.is_slow(9, 500_500, limits), "it has ten seconds"
    assert unread.is_slow(10, 500_500, limits)
    assert unread.is_slow(10, 499_501, limits), "less than 100 a second"
    assert not unread.is_slow(4, 500_100, limits), "from here on it has ten seconds again"
    assert not unread.is_slow(13.9, 500_000, limits)
    assert unread.is_slow(14, 500_000, limits)
    unread.begin(20, 5_000_000)
    assert not unread.is_slow(30, 4_000_000, limits)
    assert unread.is_slow(40, 3_000_001, limits), "of so much it must take more"


async def test_over_the_memory_for_all_connections_who_holds_most_is_cut(open_door: Open) -> None:
    door = await open_door(held_bytes_max="1MiB", payload_bytes_max="1MiB", frame_deadline=60)
    small, large, good = await door.greet(), await door.greet(), await door.greet()
    small.writer.write(frame(enqueue(1, bytes(900_000)), 2)[:200_000])
    large.writer.write(frame(enqueue(1, bytes(1_000_000)), 2)[:-1])
    error = await large.refused()
    assert (error.code, error.retryable) == ("OVERLOADED", True)
    small.writer.write(frame(enqueue(1, bytes(900_000)), 2)[200_000:])
    assert type(await small.message()) is m.Enqueued
    assert type(await good.ask(m.Heartbeat(), 2)) is m.Beat
    assert door.node._doors.held_bytes == 0


async def test_bodies_over_http_count_in_the_memory_for_all_connections(open_door: Open) -> None:
    door = await open_door(held_bytes_max="1MiB", payload_bytes_max="1MiB", frame_deadline=60)
    peer = await door.greet()
    peer.writer.write(frame(enqueue(1, bytes(900_000)), 2)[:300_000])
    answer = await http(door, HEAD.format(1_000_000).encode() + b"[" + b" " * 900_000)
    assert b"503" in answer and b"OVERLOADED" in answer
    peer.writer.write(frame(enqueue(1, bytes(900_000)), 2)[300_000:])
    assert type(await peer.message()) is m.Enqueued


# ---- http --------------------------------------------------------------------------------------------------------------------------


async def test_the_settings_of_the_http_door_are_its_limits(open_door: Open) -> None:
    door = await open_door(http_head_bytes_max="4KiB", http_head_deadline=0.2, http_request_deadline=0.4, http_idle=0.3)
    assert b"431" in await http(door, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nA: " + b"a" * 12_000)
    head, body = await asyncio.gather(http(door, b"GET /he"), http(door, HEAD.format(10).encode() + b"[1"))
    assert b"408" in head and b"head" in head
    assert b"408" in body and b"request did not" in body
    assert await http(door, b"") == b""


async def test_a_request_before_does_not_move_the_deadline_of_the_next(open_door: Open) -> None:
    door = await open_door(http_head_deadline=0.2, http_request_deadline=0.2)
    made = await (await door.greet()).ask(enqueue())
    host, port = door.node.http.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /v1/tasks/%b?wait=2 HTTP/1.1\r\nHost: localhost\r\n\r\n" % made.ids.hex().encode() + HEAD.format(2).encode() + b"[")
    await asyncio.sleep(1.3)
    writer.write(b"]")
    answer = await asyncio.wait_for(reader.read(), WAIT_S)
    assert (answer.count(b"HTTP/1.1 200"), answer.count(b"HTTP/1.1 408")) == (1, 1)
    writer.close()


# ---- at once -----------------------------------------------------------------------------------------------------------------------


WRONG = {
    "another protocol": b"GET /",
    "too large": PREFIX.pack(1 << 30, 1, 0, 1, 1, 0),
    "head over the end": PREFIX.pack(20, 1, 0, 1, 1, 9),
    "no msgpack": PREFIX.pack(15, 1, 0, 1, 1, 3) + b"\xc1\xc1\xc1",
    "out of order": frame(m.Credit(5)),
}


@pytest.mark.parametrize("data", WRONG.values(), ids=WRONG)
async def test_a_wrong_byte_is_answered_within_100_ms(open_door: Open, data: bytes) -> None:
    door = await open_door()
    late = []
    for _ in range(5):
        peer = await door.connect()
        peer.writer.write(data[:-1])
        await peer.writer.drain()
        begin_s = time.monotonic()
        peer.writer.write(data[-1:])
        await peer.refused()
        late.append(time.monotonic() - begin_s)
    assert statistics.median(late) < 0.1


async def test_a_wrong_byte_over_http_is_answered_within_100_ms(open_door: Open) -> None:
    door = await open_door()
    late = []
    for _ in range(5):
        begin_s = time.monotonic()
        assert b"400" in await http(door, b"\x16\x03\x01")
        late.append(time.monotonic() - begin_s)
    assert statistics.median(late) < 0.1
