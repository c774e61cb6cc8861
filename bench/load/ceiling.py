"""The ceiling: the bare data flow of taskq with none of its rules, as what to measure the broker against in the same run.

    python bench/load/ceiling.py [--tasks 100000] [--payload-bytes 150] [--folder .]

    producer ── ENQUEUE ─► broker ── DELIVER ─► worker          three processes, columnar frames of up to 1,000 tasks, 16 of them in flight
             ◄─ ENQUEUED ─        ◄─ ACK ──────
                             journal: all records of this moment in one write + one fdatasync, in a thread

It keeps what any durable queue has to do: ids and payloads are made and packed task by task, each task is an entry in a dict and in a FIFO, an
enqueue is answered and delivered only after its fdatasync, each task is unpacked and runs as a coroutine with a result of its own, an ack is
answered only after its fdatasync.  It leaves out the rest: checks, leases, tokens, credit, retries, sessions, recovery, any store.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import struct
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from itertools import accumulate
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import msgpack
import uvloop
from children import Program, Rate, last_words, make_payload

FRAME_TASKS = 1_000
FRAMES_IN_FLIGHT = 16
ID_BYTES = 16
PREFIX = struct.Struct(">IBI")
SWITCH_INTERVAL_S = 0.0005
WORK, ENQUEUE, ENQUEUED, DELIVER, ACK, ACKED, WATCH, DONE = range(8)

Receive = Callable[["Wire", int, list[Any], list[memoryview]], None]


class Wire(asyncio.Protocol):
    """Frames over TCP: length, kind, length of the head; the head, a msgpack array that ends with the payloads' sizes; the payloads."""

    def __init__(self, receive: Receive) -> None:
        self.transport: Any = None
        self.closed = asyncio.get_running_loop().create_future()
        self._receive = receive
        self._rest = b""
        self._out: list[bytes | memoryview] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        data = self._rest + data if self._rest else data
        view, at = memoryview(data), 0
        while len(data) - at >= PREFIX.size:
            length, kind, head_bytes = PREFIX.unpack_from(data, at)
            if len(data) - at < length:
                break
            head_at = at + PREFIX.size
            body_at = head_at + head_bytes
            *head, sizes = msgpack.unpackb(view[head_at:body_at])
            ends = accumulate(sizes, initial=body_at)
            self._receive(self, kind, head, [view[begin : begin + size] for begin, size in zip(ends, sizes, strict=False)])
            at += length
        self._rest = data[at:]

    def send(self, kind: int, *head: Any, payloads: Iterable[bytes | memoryview] = ()) -> None:
        """All frames of a turn of the loop leave in one write."""
        if not self._out:
            asyncio.get_running_loop().call_soon(self._flush)
        sizes = [len(payload) for payload in payloads]
        packed = msgpack.packb([*head, sizes])
        self._out += (PREFIX.pack(PREFIX.size + len(packed) + sum(sizes), kind, len(packed)), packed, *payloads)

    def _flush(self) -> None:
        out, self._out = self._out, []
        self.transport.write(b"".join(out))


def split(block: bytes) -> list[bytes]:
    return [block[at : at + ID_BYTES] for at in range(0, len(block), ID_BYTES)]


# ---- broker ------------------------------------------------------------------------------------------------------------------------


class Journal:
    """Group commit: what is added while the disk is busy is the next batch.  `then` runs on the loop when its record is synced."""

    def __init__(self, path: Path) -> None:
        self.bytes_written = self.syncs = 0
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._loop = asyncio.get_running_loop()
        self._buffers: list[bytes | memoryview] = []
        self._then: list[Callable[[], None]] = []
        self._busy = False
        self._jobs: SimpleQueue[tuple[list[bytes | memoryview], list[Callable[[], None]]]] = SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def add(self, buffers: list[bytes | memoryview], then: Callable[[], None]) -> None:
        self._buffers += (struct.pack(">II", len(buffers), sum(map(len, buffers))), *buffers)
        self._then.append(then)
        if not self._busy:
            self._busy = True
            self._loop.call_soon(self._begin)

    def _begin(self) -> None:
        self._jobs.put((self._buffers, self._then))
        self._buffers, self._then = [], []

    def _work(self) -> None:
        while True:
            buffers, then = self._jobs.get()
            data = b"".join(buffers)
            if os.write(self._fd, data) != len(data):
                raise OSError("short write")
            os.fdatasync(self._fd)
            self.bytes_written += len(data)
            self.syncs += 1
            self._loop.call_soon_threadsafe(self._synced, then)

    def _synced(self, then: list[Callable[[], None]]) -> None:
        for each in then:
            each()
        self._busy = bool(self._then)
        if self._busy:
            self._begin()


class Broker:
    """One shard: a dict of tasks and a FIFO of their ids."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.tasks: dict[bytes, bytes] = {}
        self.ready: deque[bytes] = deque()
        self.completed = 0
        self.worker: Wire | None = None
        self.watchers: list[tuple[int, Wire]] = []
        self._handle: dict[int, Callable[..., None]] = {WORK: self._join, ENQUEUE: self._enqueue, ACK: self._ack, WATCH: self._watch}

    def receive(self, wire: Wire, kind: int, head: list[Any], payloads: list[memoryview]) -> None:
        self._handle[kind](wire, head, payloads)

    def _join(self, wire: Wire, head: list[Any], payloads: list[memoryview]) -> None:
        self.worker = wire
        self._deliver()

    def _enqueue(self, wire: Wire, head: list[Any], payloads: list[memoryview]) -> None:
        number, block = head
        ids = split(block)
        for task_id, payload in zip(ids, payloads, strict=True):
            self.tasks[task_id] = bytes(payload)
        self.journal.add([block, *payloads], partial(self._enqueued, wire, number, ids))

    def _enqueued(self, wire: Wire, number: int, ids: list[bytes]) -> None:
        wire.send(ENQUEUED, number)
        self.ready.extend(ids)
        self._deliver()

    def _deliver(self) -> None:
        while self.worker is not None and self.ready:
            ids = [self.ready.popleft() for _ in range(min(FRAME_TASKS, len(self.ready)))]
            self.worker.send(DELIVER, b"".join(ids), payloads=[self.tasks[task_id] for task_id in ids])

    def _ack(self, wire: Wire, head: list[Any], payloads: list[memoryview]) -> None:
        ids = split(head[0])
        for task_id in ids:
            del self.tasks[task_id]  # an ack of a task that is not there ends the bench
        self.journal.add([head[0], *payloads], partial(self._acked, wire, len(ids)))

    def _acked(self, wire: Wire, count: int) -> None:
        wire.send(ACKED, count)
        self.completed += count
        for total, watcher in self.watchers:
            if self.completed == total:
                watcher.send(DONE, self.journal.bytes_written, self.journal.syncs)

    def _watch(self, wire: Wire, head: list[Any], payloads: list[memoryview]) -> None:
        self.watchers.append((head[0], wire))


async def broker(folder: str) -> None:
    state = Broker(Journal(Path(folder) / "ceiling.log"))
    server = await asyncio.get_running_loop().create_server(lambda: Wire(state.receive), "127.0.0.1", 0)
    print(f"listening port={server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


# ---- worker and producer -----------------------------------------------------------------------------------------------------------


async def connect(port: int, receive: Receive) -> Wire:
    _, wire = await asyncio.get_running_loop().create_connection(lambda: Wire(receive), "127.0.0.1", port)
    return wire


async def noop(data: bytes) -> None:
    return None


def run(payload: memoryview) -> bytes:
    """The result of one task."""
    try:
        noop(**msgpack.unpackb(payload)).send(None)
    except StopIteration as stop:
        result: bytes = msgpack.packb(stop.value)
        return result
    raise RuntimeError("a no-op does not wait")


async def worker(port: int) -> None:
    def receive(wire: Wire, kind: int, head: list[Any], payloads: list[memoryview]) -> None:
        if kind == DELIVER:
            wire.send(ACK, head[0], payloads=[run(payload) for payload in payloads])

    wire = await connect(port, receive)
    wire.send(WORK)
    print("ready", flush=True)
    await wire.closed


async def producer(port: int, tasks: int, payload_bytes: int) -> None:
    answers: dict[int, asyncio.Future[Any]] = {}
    done = asyncio.get_running_loop().create_future()

    def receive(wire: Wire, kind: int, head: list[Any], payloads: list[memoryview]) -> None:
        if kind == ENQUEUED:
            answers.pop(head[0]).set_result(None)
        else:
            done.set_result(head)

    wire = await connect(port, receive)
    numbers = iter(range(0, tasks, FRAME_TASKS))
    payload = make_payload(payload_bytes)

    async def send() -> None:
        for number in numbers:
            count = min(FRAME_TASKS, tasks - number)
            answers[number] = answer = asyncio.get_running_loop().create_future()
            ids = b"".join([os.urandom(ID_BYTES) for _ in range(count)])
            wire.send(ENQUEUE, number, ids, payloads=[msgpack.packb(payload) for _ in range(count)])
            await answer

    wire.send(WATCH, tasks)
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    started_s = time.monotonic()
    await asyncio.gather(*(send() for _ in range(FRAMES_IN_FLIGHT)))
    journal_bytes, syncs = await done
    last_words(seconds=time.monotonic() - started_s, journal_bytes=journal_bytes, syncs=syncs)


ROLES: dict[str, Callable[..., Any]] = {"broker": broker, "worker": worker, "producer": producer}


# ---- all three ---------------------------------------------------------------------------------------------------------------------


def measure(where: str, tasks: int, payload_bytes: int) -> Rate:
    """Tasks a second from the first enqueue to the last durable ack."""
    with tempfile.TemporaryDirectory(dir=os.path.abspath(where), prefix="ceiling-") as folder, Program.python(__file__, "broker", folder) as broker:
        port = broker.wait_for(r"listening port=(\d+)")[1]
        with Program.python(__file__, "worker", port) as worker, Program.python(__file__, "producer", port, tasks, payload_bytes) as producer:
            worker.wait_for("ready")
            producer.wait_for("ready")
            programs = {"broker": broker, "worker": worker, "producer": producer}
            before = {name: program.cpu_s() for name, program in programs.items()}
            producer.say("go")
            found = producer.last_words()
            cpu_s = {name: program.cpu_s() - before[name] for name, program in programs.items()}
        written = (Path(folder) / "ceiling.log").stat().st_size
    if written != found["journal_bytes"] or written < tasks * payload_bytes:
        raise RuntimeError(f"the journal has {written} bytes, not the {found['journal_bytes']} that were counted: the ceiling is not honest")
    return Rate(tasks / found["seconds"], {name: seconds / tasks * 1e6 for name, seconds in cpu_s.items()}, found["syncs"])


def main() -> None:
    if sys.argv[1:2] and sys.argv[1] in ROLES:
        role, *arguments = sys.argv[1:]
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(ROLES[role](*(int(argument) if argument.isdecimal() else argument for argument in arguments)))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--payload-bytes", type=int, default=150)
    parser.add_argument("--folder", default=".", help="where to put the journal; a temporary folder in it is removed afterwards")
    options = parser.parse_args()
    rate = measure(options.folder, options.tasks, options.payload_bytes)
    cpu = " ".join(f"{name}={us:.1f}" for name, us in rate.cpu_us.items())
    print(f"{rate.tasks_per_s:,.0f} tasks/s, {rate.syncs} fdatasync calls, µs of CPU a task: {cpu}")


if __name__ == "__main__":
    main()
