"""The broker's own code copies no payload of 64 KiB and more: each stage of a task's way is watched by tracemalloc.

A frame that spans several received chunks is joined once, which is the one copy that there is (ADR 4); most
of a large one is received where it stays."""

from __future__ import annotations

import asyncio
import random
import socket
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from taskq import AsyncClient, testing
from taskq.core import effects as fx
from taskq.core import messages as m
from taskq.core.book import Sequence64, Shared
from taskq.core.consumer import Consumer
from taskq.core.line import Budget
from taskq.core.shard import Shard
from taskq.ids import NIL
from taskq.protocol.codec import LENGTH_BYTES, PREFIX, decode, encode, join
from taskq.protocol.frames import PREFIX_BYTES, VERSION
from taskq.protocol.framing import LARGE_PART, FrameDecoder
from taskq.storage.journal import FileJournal
from taskq.storage.rows import batch_of, encode_record

LARGE = 1 << 20
HUGE = 16 << 20
COPY_BYTES_MIN = 64 << 10
NOW_MS = 1_700_000_000_000
SESSION = bytes(16)


@pytest.fixture(autouse=True)
def traced() -> Iterator[None]:
    tracemalloc.start(1)
    yield
    tracemalloc.stop()


def peak_of(work: Callable[[], Any]) -> tuple[Any, int]:
    """What the work gives, and by how many bytes memory had grown at its highest."""
    before, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    given = work()
    return given, tracemalloc.get_traced_memory()[1] - before


def uncopied(work: Callable[[], Any]) -> Any:
    given, peak_bytes = peak_of(work)
    assert peak_bytes < COPY_BYTES_MIN, f"{peak_bytes:,} bytes were made"
    return given


def frame_of(message: Any) -> bytes:
    return b"".join(bytes(part) for part in encode(message, 1))


def shard() -> Shard:
    shared = Shared(Sequence64(1), Sequence64(1), Budget(1 << 30), random.Random(1))
    consumer = Consumer(SESSION, "w", NOW_MS + 60_000, origin=2, queues=("default",), task_types=frozenset({"work"}), allowed=5)
    shared.consumers[SESSION] = consumer
    return Shard(0, 1, shared)


def test_a_payload_is_received_admitted_written_stored_and_delivered_without_a_copy(tmp_path: Path) -> None:
    received = frame_of(m.Enqueue([bytes(LARGE)], "default", NIL, ["work"]))
    (frame,) = uncopied(lambda: FrameDecoder(1 << 26).feed(received))
    core = shard()
    ready = fx.Command(0, 0, fx.Ready(SESSION))
    effects = uncopied(lambda: core.turn([fx.Command(1, 1, frame.message), ready], NOW_MS))
    records = uncopied(lambda: [encode_record(record) for record in effects.records])
    journal = FileJournal(tmp_path / "journal")
    list(journal.read(0))
    journal.start(1, 1)
    uncopied(lambda: journal.write(1, records))
    journal.close()
    uncopied(lambda: batch_of(core.take_dirty(), {}))
    (deliver,) = [reply.message for reply in effects.replies if type(reply.message) is m.Deliver]
    parts = uncopied(lambda: join(encode(deliver)))
    assert sum(map(len, parts)) > LARGE


def test_a_result_is_received_kept_and_shown_without_a_copy(tmp_path: Path) -> None:
    core = shard()
    command = fx.Command(1, 1, m.Enqueue([b"\x80"], "default", NIL, ["work"]))
    effects = core.turn([command, fx.Command(0, 0, fx.Ready(SESSION))], NOW_MS)
    (deliver,) = [reply.message for reply in effects.replies if type(reply.message) is m.Deliver]
    received = frame_of(m.Ack([bytes(LARGE)], deliver.ids, deliver.tokens))
    (frame,) = uncopied(lambda: FrameDecoder(1 << 26).feed(received))
    effects = uncopied(lambda: core.turn([fx.Command(2, 1, frame.message, session=SESSION)], NOW_MS))
    uncopied(lambda: [encode_record(record) for record in effects.records])
    uncopied(lambda: batch_of(core.take_dirty(), {}))
    effects = uncopied(lambda: core.turn([fx.Command(1, 2, m.Get(deliver.ids))], NOW_MS))
    assert sum(map(len, uncopied(lambda: join(encode(effects.replies[0].message, 2))))) > LARGE


def test_a_frame_that_spans_chunks_is_joined_once() -> None:
    received = frame_of(m.Enqueue([bytes(LARGE)], "default", NIL, ["work"]))
    chunks = [received[at : at + 50_000] for at in range(0, len(received), 50_000)]
    decoder = FrameDecoder(1 << 26)
    frames, peak_bytes = peak_of(lambda: [frame for chunk in chunks for frame in decoder.feed(chunk)])
    assert len(frames) == 1
    assert peak_bytes < LARGE + COPY_BYTES_MIN


async def test_what_a_whole_broker_keeps_of_a_payload_is_the_frame_that_brought_it() -> None:
    def large() -> Counter[str]:
        traces = [(trace.traceback[0].filename, trace.size) for trace in tracemalloc.take_snapshot().traces]
        return Counter(Path(name).name for name, size in traces if size >= COPY_BYTES_MIN and "/taskq/" in name)

    async with testing.broker() as node, AsyncClient(node.tcp) as client:
        before = large()
        handle = await client.enqueue("work", bytes(LARGE - 1_024))
        assert (await handle.info()).state == "pending"
        ours = set(large() - before)
    assert ours <= {"framing.py", "batch.py"}, "framing joins what was received; batch.py is the client in this process"


class Peer:
    """A client in a thread that makes nothing large while it is watched: it receives into a buffer that it has already."""

    def __init__(self, address: str, role: str) -> None:
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), 20)
        self.buffer = memoryview(bytearray(HUGE + 4_096))
        self.ask(m.Hello(VERSION, role, {}))

    def ask(self, message: Any) -> Any:
        for part in encode(message, 1):
            self.socket.sendall(part)
        return self.next()

    def next(self) -> Any:
        prefix = self._filled(self.buffer[:PREFIX_BYTES])
        length, _, _, kind, _, head_bytes = PREFIX.unpack(prefix)
        body = self._filled(self.buffer[PREFIX_BYTES : LENGTH_BYTES + length])
        return decode(kind, bytes(body[:head_bytes]), body[head_bytes:])

    def _filled(self, view: memoryview) -> memoryview:
        at = 0
        while at < len(view):
            at += self.socket.recv_into(view[at:])
        return view

    def wait_for_store(self) -> None:
        while (row := self.ask(m.Inspect("broker")).rows[0])["applied_lsn"] < row["journal_lsn"]:
            pass


def one_task_through(producer: Peer, worker: Peer, payload: bytes, result: bytes) -> None:
    """Enqueued, stored, delivered, acknowledged and stored again."""
    producer.ask(m.Enqueue([payload], "default", NIL, ["work"]))
    producer.wait_for_store()
    worker.socket.sendall(b"".join(encode(m.Credit(1))))
    task = worker.next()
    assert len(task.payloads[0]) == len(payload)
    worker.ask(m.Ack([result], task.ids, task.tokens))
    producer.wait_for_store()


@pytest.mark.parametrize(("payload", "result"), [(HUGE, 1), (1, HUGE)], ids=["payload", "result"])
def test_all_that_a_whole_broker_makes_for_a_huge_payload_or_result_is_one_buffer_that_receives_it(payload: int, result: int) -> None:
    """On uvloop; the loop of the standard library joins what it sends."""

    async def measure() -> int:
        async with testing.broker(payload_bytes_max=HUGE, frame_bytes_max=2 * HUGE) as node:
            producer, worker = await asyncio.to_thread(lambda: (Peer(node.tcp, "producer"), Peer(node.tcp, "worker")))
            await asyncio.to_thread(worker.ask, m.Consume(["default"], ["work"], 1))
            sent = bytes(payload), bytes(result)
            before, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            await asyncio.to_thread(one_task_through, producer, worker, *sent)
            grown = tracemalloc.get_traced_memory()[1] - before
            producer.socket.close()
            worker.socket.close()
            return grown

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        grown = runner.run(measure())
    first_part = HUGE // LARGE_PART  # it waits in the chunks that brought it until the buffer is there
    assert grown < HUGE + first_part + 8 * COPY_BYTES_MIN, f"{grown:,} bytes were made"
