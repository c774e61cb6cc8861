"""The peers of the load campaign: clients on raw sockets, good and bad ones, and the crowds of them that run in a process of their own.

A crowd is a function `(pipe, tcp, http, …)` that `spawned` runs in another process: what it is told and what it has found goes through the pipe.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from taskq.core import messages as m
from taskq.ids import NIL
from taskq.protocol.codec import encode
from taskq.protocol.framing import FrameDecoder

Address = tuple[str, int]
BEAT_S = 4.0
AT_ONCE = 200
# so that a storm does not run out of ports: each of these addresses has its own
SOURCES = [f"127.0.0.{last}" for last in range(2, 52)]


def frame(message: Any, seq: int = 1) -> bytes:
    return b"".join(bytes(part) for part in encode(message, seq))


HELLO = frame(m.Hello(1, "producer"))


def enqueue(queue: str, count: int = 1, payload: bytes = b"\x80") -> m.Enqueue:
    return m.Enqueue([payload] * count, queue, NIL * count, ["work"])


class Peer(asyncio.Protocol):
    """One connection.  An answer goes to who asked; `error` is what the broker said before it closed; `pushed`: frames that answer nothing."""

    def __init__(self, role: str = "producer", data: bytes = b"") -> None:
        self.first = data or frame(m.Hello(1, role))
        self.transport: Any = None
        self.error = ""
        self.pushed: list[Any] = []
        self.on_answer: Callable[[int, Any], None] | None = None
        self.welcome: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.closed: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._decoder = FrameDecoder(1 << 26)
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._seqs = itertools.count(2)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(self.first)

    def data_received(self, data: bytes) -> None:
        for each in self._decoder.feed(data):
            message = each.message
            if type(message) is m.Error and each.seq == 0:
                self.error = message.code
            elif each.seq in self._asked:
                asked = self._asked.pop(each.seq)
                if not asked.done():
                    asked.set_result(message)
            elif type(message) is m.Welcome:
                self.welcome.set_result(message)
            elif each.seq and self.on_answer is not None:
                self.on_answer(each.seq, message)
            elif not each.seq:
                self.pushed.append(message)

    def connection_lost(self, error: Exception | None) -> None:
        self.closed.set_result(time.monotonic())
        for future in (self.welcome, *self._asked.values()):
            if not future.done():
                future.cancel()

    def send(self, message: Any) -> int:
        seq = next(self._seqs)
        self.transport.write(frame(message, seq))
        return seq

    async def ask(self, message: Any) -> Any:
        future = asyncio.get_running_loop().create_future()
        self._asked[self.send(message)] = future
        return await future


async def open_peer(address: Address, role: str = "producer", source: str = "", **options: Any) -> Peer:
    """Connected; greeted once `welcome` is there."""
    local = (source, 0) if source else None
    _, peer = await asyncio.get_running_loop().create_connection(lambda: Peer(role, **options), *address, local_addr=local)
    return peer


async def greeted(address: Address, role: str = "producer", source: str = "") -> Peer:
    peer = await open_peer(address, role, source)
    await peer.welcome
    return peer


# ---- a process of its own ----------------------------------------------------------------------------------------------------------


class Crowd:
    """The other end of a crowd: `ask` tells it something and waits for what it has found."""

    def __init__(self, pipe: Any, process: Any) -> None:
        self.pid = process.pid
        self._pipe = pipe
        self._process = process

    def tell(self, word: Any) -> None:
        self._pipe.send(word)

    async def heard(self) -> Any:
        while not self._pipe.poll():
            if not self._process.is_alive():
                raise RuntimeError("the crowd ended by itself")
            await asyncio.sleep(0.02)
        return self._pipe.recv()

    async def ask(self, word: Any) -> Any:
        self.tell(word)
        return await self.heard()


@contextmanager
def spawned(crowd: Callable[..., Any], *arguments: Any) -> Iterator[Crowd]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(crowd, theirs, arguments), daemon=True)
    process.start()
    try:
        yield Crowd(ours, process)
    finally:
        process.kill()
        process.join()


def _run(crowd: Callable[..., Any], pipe: Any, arguments: tuple[Any, ...]) -> None:
    with suppress(EOFError, BrokenPipeError):
        asyncio.run(crowd(pipe, *arguments))


async def _told(pipe: Any) -> Any:
    while not pipe.poll():
        await asyncio.sleep(0.02)
    return pipe.recv()


def percentile(values: list[float], share: float = 0.99) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] if values else float("nan")


# ---- crowds ------------------------------------------------------------------------------------------------------------------------


async def many(pipe: Any, tcp: Address, connections: int) -> None:
    """Open so many, keep them alive with heartbeats; told a number of seconds, each asks one thing a second for so long."""
    opening = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> Peer | None:
        async with opening:
            with suppress(OSError, asyncio.CancelledError):
                return await greeted(tcp, source=SOURCES[number % len(SOURCES)])
        return None

    peers = [peer for peer in await asyncio.gather(*(one(number) for number in range(connections))) if peer is not None]

    async def beat() -> None:
        while True:
            begin_s = time.monotonic()
            for at, peer in enumerate(peers):
                if not peer.closed.done():
                    peer.send(m.Heartbeat())
                if at % 100 == 99:
                    await asyncio.sleep(max(0.0, begin_s + BEAT_S * at / len(peers) - time.monotonic()))
            await asyncio.sleep(max(0.0, begin_s + BEAT_S - time.monotonic()))

    beating = asyncio.ensure_future(beat())
    pipe.send(len(peers))
    while True:
        seconds = await _told(pipe)
        if not seconds:
            break
        late_s: list[float] = []
        await asyncio.gather(*(_active(peer, seconds, f"active-{at % 50}", late_s) for at, peer in enumerate(peers)))
        lost = sum(peer.closed.done() for peer in peers)
        pipe.send({"operations": len(late_s), "operation_p99_ms": percentile(late_s) * 1000, "lost": lost})
    beating.cancel()


async def _active(peer: Peer, seconds: float, queue: str, late_s: list[float]) -> None:
    until_s = time.monotonic() + seconds
    await asyncio.sleep(random.random())
    with suppress(asyncio.CancelledError):
        while not peer.closed.done() and (begin_s := time.monotonic()) < until_s:
            await peer.ask(enqueue(queue))
            late_s.append(time.monotonic() - begin_s)
            await asyncio.sleep(max(0.0, begin_s + 1 - time.monotonic()))


async def storm(pipe: Any, tcp: Address, a_second: int, seconds: float) -> None:
    """Connections that come, greet and go."""
    found: Counter[str] = Counter()

    async def one(number: int) -> None:
        try:
            peer = await greeted(tcp, source=SOURCES[number % len(SOURCES)])
        except (OSError, asyncio.CancelledError):
            found["refused"] += 1
            return
        found["greeted"] += 1
        peer.transport.close()

    begin_s = time.monotonic()
    running = []
    for number in range(round(a_second * seconds)):
        if number % 20 == 0:
            await asyncio.sleep(max(0.0, begin_s + number / a_second - time.monotonic()))
        running.append(asyncio.ensure_future(one(number)))
    await asyncio.gather(*running)
    pipe.send({**found, "a_second": round(len(running) / (time.monotonic() - begin_s))})
    await _told(pipe)


async def deaf(pipe: Any, tcp: Address, each: int, payload_bytes: int) -> None:
    """Workers that take tasks and producers that ask for them, none of which reads."""
    maker = await greeted(tcp)
    made = await maker.ask(enqueue("asked-for", 1, bytes(payload_bytes)))
    peers = [await greeted(tcp, "worker") for _ in range(each)] + [await greeted(tcp) for _ in range(each)]
    for peer in peers[:each]:
        await peer.ask(m.Consume(["deaf"], ["work"], 1))
    begin_s = time.monotonic()
    for peer in peers:
        peer.transport.pause_reading()
    for peer in peers[:each]:
        peer.send(m.Credit(1_000))
    for peer in peers[each:]:
        for _ in range(64):
            peer.send(m.Get(made.ids))
    pipe.send(len(peers))
    while await _told(pipe):
        for peer in peers:
            with suppress(OSError):
                if not peer.transport.is_closing():
                    peer.send(m.Heartbeat())
        pipe.send(time.monotonic() - begin_s)
    for peer in peers:
        peer.transport.resume_reading()
    await asyncio.wait([peer.closed for peer in peers], timeout=10)
    pipe.send(Counter(peer.error or ("cut" if peer.closed.done() else "open") for peer in peers))


_BODY = b"POST /enqueue HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n["
# where a peer is slow → whether over HTTP, what it sends at once, what it would go on with
SLOW: dict[str, tuple[bool, bytes, bytes]] = {
    "greeting": (False, HELLO[:1], HELLO[1:]),
    "frame head": (False, HELLO + frame(enqueue("slow", 1, bytes(900)), 2)[:3], frame(enqueue("slow", 1, bytes(900)), 2)[3:]),
    "frame body": (False, HELLO + frame(enqueue("slow", 1, bytes(900)), 2)[:100], frame(enqueue("slow", 1, bytes(900)), 2)[100:]),
    "request line": (True, b"GET /", b"healthz" * 100),
    "header": (True, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nA", b"a" * 900),
    "body": (True, _BODY, b" " * 900),
}


async def slowloris(pipe: Any, tcp: Address, http: Address, each: int, pause_s: float) -> None:
    """Peers that send a byte now and then; for each place, the longest time until one of them was closed."""
    latest_s: dict[str, float] = {}
    running = [asyncio.ensure_future(_slow(tcp, http, where, pause_s, latest_s)) for _ in range(each) for where in SLOW]
    pipe.send(len(running))
    await asyncio.gather(*running)
    pipe.send(latest_s)
    await _told(pipe)


async def _slow(tcp: Address, http: Address, where: str, pause_s: float, latest_s: dict[str, float]) -> None:
    over_http, first, rest = SLOW[where]
    peer = await open_peer(http if over_http else tcp, source=random.choice(SOURCES), data=first)
    begin_s = time.monotonic()
    for at in range(len(rest)):
        with suppress(TimeoutError):
            closed_s = await asyncio.wait_for(asyncio.shield(peer.closed), pause_s)
            latest_s[where] = max(latest_s.get(where, 0.0), closed_s - begin_s)
            return
        peer.transport.write(rest[at : at + 1])
    latest_s[where] = float("inf")


async def flood(pipe: Any, tcp: Address, batch: int, payload_bytes: int, window: int) -> None:
    """Enqueue without end; told "go" and "stop".  What was answered, by outcome."""
    peer = await greeted(tcp)
    found: Counter[str] = Counter()
    in_flight = 0
    answered = asyncio.Event()

    def on_answer(_: int, message: Any) -> None:
        nonlocal in_flight
        in_flight -= 1
        found[message.code if type(message) is m.Error else "tasks"] += 1 if type(message) is m.Error else len(message.outcomes)
        answered.set()

    peer.on_answer = on_answer
    request = enqueue("flood", batch, os.urandom(payload_bytes))
    pipe.send(True)
    while await _told(pipe) == "go":
        found.clear()
        while not pipe.poll() and not peer.closed.done():
            while in_flight < window:
                peer.send(request)
                in_flight += 1
            answered.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(answered.wait(), 0.1)
        pipe.recv()
        while in_flight and not peer.closed.done():
            answered.clear()
            await answered.wait()
        pipe.send({**found, **({peer.error or "cut": 1} if peer.closed.done() else {})})


async def stopped_worker(pipe: Any, tcp: Address, queue: str) -> None:
    """A worker that takes 1,000 tasks at a time, to be stopped from outside."""
    worker = await greeted(tcp, "worker")
    await worker.ask(m.Consume([queue], ["work"], 1_000))
    worker.send(m.Credit(1_000))
    pipe.send(True)
    await _told(pipe)
