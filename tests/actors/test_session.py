"""The TCP door of a real broker, spoken to frame by frame: order, refusals, limits, and that one connection's end is nobody else's."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest

from taskq import AsyncClient, testing
from taskq.actors import session as module
from taskq.core import messages as m
from taskq.core.requests import Requests
from taskq.core.ring import MERGE
from taskq.ids import NIL, split
from taskq.node import Node
from taskq.protocol.codec import PREFIX, encode
from taskq.protocol.frames import Frame
from taskq.protocol.framing import FrameDecoder

WAIT_S = 10.0


class Peer:
    """A client that says exactly what it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._decoder = FrameDecoder(1 << 26)
        self._frames: list[Frame] = []

    def send(self, message: Any, seq: int = 0) -> None:
        for part in encode(message, seq):
            self.writer.write(bytes(part))

    async def frame(self) -> Frame | None:
        """The next frame, None at the end of the connection."""
        while not self._frames:
            data = await asyncio.wait_for(self.reader.read(1 << 16), WAIT_S)
            if not data:
                return None
            self._frames = self._decoder.feed(data)
        return self._frames.pop(0)

    async def message(self) -> Any:
        frame = await self.frame()
        return frame and frame.message

    async def ask(self, message: Any, seq: int = 1) -> Any:
        """The answer to this request; what comes before it is passed over."""
        self.send(message, seq)
        while (frame := await self.frame()) is not None:
            if frame.seq == seq:
                return frame.message
        return None

    async def is_gone(self) -> bool:
        """The broker has ended the connection without a word."""
        try:
            return await self.frame() is None
        except ConnectionError:
            return True

    async def refused(self) -> m.Error:
        """The last word of the broker: an Error, then the end."""
        error = await self.message()
        assert type(error) is m.Error
        assert await self.frame() is None
        return error


class Door:
    def __init__(self, node: Node) -> None:
        self.node = node
        self.peers: list[Peer] = []

    async def connect(self) -> Peer:
        host, port = self.node.tcp.rsplit(":", 1)
        peer = Peer(*await asyncio.open_connection(host, int(port)))
        self.peers.append(peer)
        return peer

    async def greet(self, role: str = "producer") -> Peer:
        peer = await self.connect()
        assert type(await peer.ask(m.Hello(1, role))) is m.Welcome
        return peer

    async def worker(self, credit: int = 1, queues: tuple[str, ...] = ("default",)) -> Peer:
        peer = await self.greet("worker")
        assert type(await peer.ask(m.Consume(list(queues), ["work"], credit))) is m.Ok
        peer.send(m.Credit(credit))
        return peer


def enqueue(count: int = 1, payload: bytes = b"\x80", queue: str = "default") -> m.Enqueue:
    return m.Enqueue([payload] * count, queue, NIL * count, ["work"])


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    async with testing.broker(connections_max=20) as node:
        door = Door(node)
        yield door
        for peer in door.peers:
            peer.writer.close()


async def test_a_task_goes_all_the_way_by_frames(door: Door) -> None:
    producer, worker = await door.greet(), await door.worker()
    made = await producer.ask(enqueue(payload=b"\xa5hello"))
    assert made.outcomes == bytes([m.CREATED])
    delivered = await worker.message()
    assert (delivered.first, bytes(delivered.payloads[0]), delivered.ids) == (1, b"\xa5hello", made.ids)
    reported = await worker.ask(m.Ack([b"\xa2ok"], delivered.ids, delivered.tokens), 2)
    assert reported.outcomes == bytes([m.REPORT_OK])
    info = await producer.ask(m.Get(made.ids), 2)
    assert info.info["state"] == "completed"
    assert bytes(info.payloads[1]) == b"\xa2ok"


async def test_the_result_is_pushed_to_who_waits_for_it(door: Door) -> None:
    producer, worker = await door.greet(), await door.worker()
    made = await producer.ask(enqueue())
    producer.send(m.Get(made.ids, 60_000), 2)
    delivered = await worker.message()
    worker.send(m.Ack([b"\x01"], delivered.ids, delivered.tokens), 2)
    info = await producer.message()
    assert info.info["state"] == "completed"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (PREFIX.pack(12, 9, 0, 1, 1, 0), "VERSION_UNSUPPORTED"),
        (PREFIX.pack(1 << 30, 1, 0, 1, 1, 0), "FRAME_TOO_LARGE"),
        (PREFIX.pack(8_193 - 4, 1, 0, 1, 1, 0), "FRAME_TOO_LARGE"),
        (PREFIX.pack(15, 1, 0, 1, 1, 3) + b"\xc1\xc1\xc1", "BAD_FRAME"),
        (b"".join(bytes(part) for part in encode(m.Hello(2, "producer"), 1)), "VERSION_UNSUPPORTED"),
        (b"".join(bytes(part) for part in encode(m.Hello(1, "boss"), 1)), "BAD_FRAME"),
        (b"".join(bytes(part) for part in encode(m.Credit(5), 0)), "OUT_OF_ORDER"),
        (struct.pack(">I", 0xFFFFFFFF) + bytes(64), "VERSION_UNSUPPORTED"),
    ],
)
async def test_what_breaks_the_protocol_ends_its_own_connection_with_one_error(door: Door, data: bytes, code: str) -> None:
    other, peer = await door.greet(), await door.connect()
    peer.writer.write(data)
    assert (await peer.refused()).code == code
    assert type(await other.ask(m.Heartbeat(), 2)) is m.Beat


async def test_a_frame_that_the_end_of_the_connection_cuts_off_is_told_so(door: Door) -> None:
    peer = await door.greet()
    peer.writer.write(b"".join(bytes(part) for part in encode(enqueue(), 2))[:-1])
    peer.writer.write_eof()
    error = await peer.refused()
    assert (error.code, error.message) == ("BAD_FRAME", "the connection ended inside a frame")


async def test_the_frames_before_a_broken_one_are_handled(door: Door) -> None:
    peer, other = await door.greet(), await door.greet()
    good = b"".join(bytes(part) for part in encode(enqueue(queue="before"), 2))
    peer.writer.write(good + PREFIX.pack(15, 1, 0, 1, 7, 3) + b"\xc1\xc1\xc1")
    error = await peer.message()
    while type(error) is not m.Error:
        error = await peer.message()
    assert error.code == "BAD_FRAME"
    rows = (await other.ask(m.Inspect("queues"), 2)).rows
    assert [row["pending"] for row in rows if row["queue"] == "before"] == [1]


async def test_an_unknown_kind_is_answered_and_the_connection_goes_on(door: Door) -> None:
    peer = await door.greet()
    peer.writer.write(PREFIX.pack(13, 1, 0, 0x0777, 2, 1) + b"\x90")
    assert (await peer.message()).code == "UNKNOWN_KIND"
    assert type(await peer.ask(m.Heartbeat(), 3)) is m.Beat


async def test_a_role_may_not_do_what_is_not_its_own(door: Door) -> None:
    peer = await door.greet("producer")
    assert (await peer.ask(m.Consume(["default"], ["work"], 1), 2)).code == "FORBIDDEN"
    assert type(await peer.ask(enqueue(), 3)) is m.Enqueued


async def test_a_seq_in_use_ends_the_connection(door: Door) -> None:
    peer = await door.greet()
    made = await peer.ask(enqueue())
    peer.send(m.Get(made.ids, 60_000), 2)
    peer.send(m.Get(made.ids, 60_000), 2)
    assert (await peer.refused()).code == "OUT_OF_ORDER"


async def test_one_connection_too_many_is_told_so(door: Door) -> None:
    for _ in range(20):
        await door.greet()
    peer = await door.connect()
    error = await peer.refused()
    assert (error.code, error.retryable) == ("TOO_MANY_CONNECTIONS", True)


async def test_bye_gives_the_leases_back_uncharged(door: Door) -> None:
    producer, worker = await door.greet(), await door.worker()
    made = await producer.ask(enqueue())
    delivered = await worker.message()
    await worker.ask(m.Heartbeat(1, delivered.tokens), 2)
    assert type(await worker.ask(m.Bye(), 3)) is m.Ok
    assert await worker.frame() is None
    info = (await producer.ask(m.Get(made.ids), 2)).info
    assert (info["state"], info["attempts_used"], info["interruptions"]) == ("pending", 0, 1)


async def test_a_session_that_resumes_keeps_its_lease_and_ends_the_older_connection(door: Door) -> None:
    producer = await door.greet()
    old = await door.connect()
    welcome = await old.ask(m.Hello(1, "worker"))
    await old.ask(m.Consume(["default"], ["work"], 1), 2)
    old.send(m.Credit(1))
    await producer.ask(enqueue())
    delivered = await old.message()
    new = await door.greet("worker")
    resumed = await new.ask(m.Resume(welcome.session, welcome.secret, 1, delivered.tokens), 2)
    assert resumed.outcomes == bytes([m.KEPT])
    assert (await old.refused()).code == "SESSION_TAKEN"
    assert (await new.ask(m.Ack([b"\x01"], delivered.ids, delivered.tokens), 3)).outcomes == bytes([m.REPORT_OK])


async def test_resume_consume_and_credit_in_one_write_are_done_in_their_order(door: Door) -> None:
    producer, old = await door.greet(), await door.connect()
    welcome = await old.ask(m.Hello(1, "worker"))
    old.writer.close()
    new = await door.greet("worker")
    new.send(m.Resume(welcome.session, welcome.secret, 0), 2)
    new.send(m.Consume(["default"], ["work"], 1), 3)
    new.send(m.Credit(1))
    assert [type(await new.message()) for _ in range(2)] == [m.Resumed, m.Ok]
    made = await producer.ask(enqueue())
    assert (await new.message()).ids == made.ids


async def test_a_worker_that_is_said_to_be_dead_is_told_so_and_its_connection_ends(door: Door) -> None:
    keeper, runner = await door.greet("keeper"), await door.connect()
    welcome = await runner.ask(m.Hello(1, "worker"))
    await runner.ask(m.Consume(["default"], ["work"], 1), 2)
    await keeper.ask(m.Died(welcome.session, welcome.secret, "SIGKILL"), 2)
    assert (await runner.refused()).code == "SESSION_OVER"


async def answers_until(peer: Peer, seqs: set[int]) -> list[Any]:
    """What comes until the end, without the answers to these requests, each of which must come."""
    rest = []
    while (frame := await peer.frame()) is not None:
        if frame.seq in seqs:
            seqs.remove(frame.seq)
        else:
            rest.append(frame.message)
    assert not seqs, f"{len(seqs)} requests were not answered"
    return rest


async def test_what_came_before_a_broken_frame_is_answered_before_the_error(door: Door) -> None:
    peer = await door.greet()
    for seq in range(2, 202):
        peer.send(enqueue(), seq)
    peer.writer.write(PREFIX.pack(15, 1, 0, 1, 7, 3) + b"\xc1\xc1\xc1")
    (error,) = await answers_until(peer, set(range(2, 202)))
    assert error.code == "BAD_FRAME"


@pytest.mark.parametrize("goodbye", [False, True])
async def test_who_sends_no_more_gets_the_answers_to_what_it_asked_for(door: Door, goodbye: bool) -> None:
    peer = await door.greet()
    for seq in range(2, 802):
        peer.send(enqueue(), seq)
    if goodbye:
        peer.send(m.Bye(), 802)
    peer.writer.write_eof()
    assert await answers_until(peer, set(range(2, 802 + goodbye))) == []


async def test_who_sends_no_more_is_not_kept_for_a_task_to_end(door: Door) -> None:
    producer, peer = await door.greet(), await door.greet()
    made = await producer.ask(enqueue())
    peer.send(m.Get(made.ids, 60_000), 2)
    peer.writer.write_eof()
    assert await peer.is_gone()


async def test_a_worker_that_sends_no_more_is_given_no_more_tasks(door: Door) -> None:
    producer, done, good = await door.greet(), await door.worker(credit=5), await door.worker(credit=1)
    done.writer.write_eof()
    assert await done.is_gone()
    made = await producer.ask(enqueue())
    assert (await good.message()).ids == made.ids


async def test_an_end_waits_for_answers_no_longer_than_it_may(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWERS_S", 0.1)
    peer = await door.greet()
    monkeypatch.setattr(Requests, "working", 1)
    peer.writer.write(PREFIX.pack(15, 1, 0, 1, 7, 3) + b"\xc1\xc1\xc1")
    assert (await peer.refused()).code == "BAD_FRAME"


async def test_a_stale_token_changes_nothing(door: Door) -> None:
    producer, first = await door.greet(), await door.worker()
    await producer.ask(enqueue())
    stale = await first.message()
    await first.ask(m.Release(stale.ids, stale.tokens, [0]), 2)
    second = await door.worker()
    current = await second.message()
    assert current.tokens != stale.tokens
    assert (await first.ask(m.Ack([b"\x01"], stale.ids, stale.tokens), 3)).outcomes == bytes([m.REPORT_LEASE_LOST])
    assert (await second.ask(m.Ack([b"\x02"], current.ids, current.tokens), 2)).outcomes == bytes([m.REPORT_OK])


async def test_a_running_task_is_revoked_at_once_when_it_is_cancelled(door: Door) -> None:
    producer, worker = await door.greet(), await door.worker()
    made = await producer.ask(enqueue())
    delivered = await worker.message()
    (row,) = (await producer.ask(m.Inspect("workers"), 4)).rows
    assert row["running"] == 1
    assert (await producer.ask(m.Cancel(made.ids), 2)).outcomes == bytes([m.CANCEL_REQUESTED])
    assert (await worker.message()).tokens == delivered.tokens
    await worker.ask(m.Fail(delivered.ids, delivered.tokens, [m.RETRY], [0], ["Cancelled"], [""]), 2)
    assert (await producer.ask(m.Get(made.ids), 3)).info["state"] == "cancelled"


async def test_a_worker_that_does_not_read_is_not_delivered_more_and_nobody_else_waits(door: Door) -> None:
    producer, sleeper = await door.greet(), await door.worker(credit=1_000, queues=("large",))
    sleeper.reader._transport.pause_reading()  # type: ignore[attr-defined]
    for seq in range(2, 42):
        made = await producer.ask(enqueue(1, bytes(1 << 20), "large"), seq)
        assert type(made) is m.Enqueued
    (row,) = [row for row in (await producer.ask(m.Inspect("queues"), 50)).rows if row["queue"] == "large"]
    assert row["running"] + row["pending"] == 40
    assert row["pending"] > 0
    sleeper.reader._transport.resume_reading()  # type: ignore[attr-defined]
    received = 0
    while received < 40:
        received += len(split((await sleeper.message()).ids, 16))


async def test_a_broker_that_drains_says_so_and_refuses_with_a_typed_error(door: Door) -> None:
    producer = await door.greet()
    await door.node.drain(0)
    assert type(await producer.message()) is m.Goaway
    error = await producer.ask(enqueue(), 2)
    assert (error.code, error.retryable) == ("DRAINING", True)


async def test_many_clients_are_each_answered(door: Door) -> None:
    async def one(number: int) -> int:
        async with AsyncClient(door.node.tcp) as client:
            handles = await client.enqueue_many("work", [{"number": number}] * 50)
            return len({handle.id for handle in handles})

    assert await asyncio.gather(*(one(number) for number in range(10))) == [50] * 10


@pytest.mark.parametrize(("cause", "outcome"), [("SIGSEGV", "crashed"), ("", "interrupted")])
async def test_a_keeper_tells_the_death_of_its_runner_and_whether_it_was_meant(door: Door, cause: str, outcome: str) -> None:
    producer, keeper = await door.greet(), await door.greet("keeper")
    runner = await door.connect()
    welcome = await runner.ask(m.Hello(1, "worker"))
    await runner.ask(m.Consume(["default"], ["work"], 1), 2)
    runner.send(m.Credit(1))
    made = await producer.ask(enqueue())
    await runner.message()
    assert type(await keeper.ask(m.Keepalive(welcome.session, welcome.secret, 1), 2)) is m.Ok
    assert type(await keeper.ask(m.Died(welcome.session, welcome.secret, cause), 3)) is m.Ok
    (attempt,) = (await producer.ask(m.Get(made.ids), 2)).info["attempts"]
    assert (attempt["outcome"], attempt["error"]) == (outcome, cause)


async def test_who_broke_the_protocol_is_given_no_more_tasks_while_it_may_still_read_why(door: Door) -> None:
    producer, broken, good = await door.greet(), await door.worker(credit=5), await door.worker(credit=1)
    broken.writer.write(PREFIX.pack(15, 1, 0, 1, 7, 3) + b"\xc1\xc1\xc1")
    assert (await broken.refused()).code == "BAD_FRAME"
    made = await producer.ask(enqueue())
    assert (await good.message()).ids == made.ids


async def test_an_answer_that_cannot_be_sent_ends_its_own_connection_alone(door: Door) -> None:
    asking, other = await door.greet(), await door.greet()
    door.node._house.describe = lambda: {"data": "\udcff"}
    asking.send(m.Inspect("broker"), 2)
    other.send(m.Heartbeat(), 2)
    assert type(await other.message()) is m.Beat
    assert (await asking.refused()).code == "INTERNAL"


async def test_a_reply_that_cannot_be_handled_ends_its_own_connection_alone(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    asking, other = await door.greet(), await door.greet()
    monkeypatch.setitem(MERGE, m.Inspected, lambda gather: 1 / 0)
    assert (await asking.ask(m.Inspect("queues"), 2)).code == "INTERNAL"
    assert await asking.is_gone()
    assert type(await other.ask(enqueue(), 2)) is m.Enqueued
    assert not door.node.failed.done()


async def test_a_peer_that_reads_slowly_gets_what_was_written_before_the_broker_stopped(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LINGER_S", 0.0)
    peer = await door.greet()
    made = await peer.ask(enqueue(payload=bytes(1 << 20)))
    assert made.outcomes == bytes([m.CREATED])
    peer.writer.write(b"".join(bytes(part) for seq in range(2, 18) for part in encode(m.Get(made.ids), seq)))
    first = await peer.frame()
    assert first is not None
    seqs = [first.seq]
    stopping = asyncio.ensure_future(door.node._listener.close())
    await asyncio.sleep(0)
    door.node._listener._sweep()
    while (frame := await peer.frame()) is not None:
        seqs.append(frame.seq)
    assert seqs == list(range(2, 18))
    await stopping
