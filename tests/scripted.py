"""A broker that misbehaves by a script: real sockets, real frames, and answers that no real broker would give."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from taskq.core import messages as m
from taskq.protocol.codec import encode
from taskq.protocol.frames import Frame
from taskq.protocol.framing import FrameDecoder

BROKER_MS = 2_000_000_000_000
Reply = Callable[[Frame], list[Any]]


def created(frame: Frame) -> list[Any]:
    count = len(frame.message.payloads)
    return [m.Enqueued(frame.message.ids, bytes(count), bytes([2]) * count, m.FSYNC)]


class Scripted:
    """It greets, and answers each other request but heartbeats and questions about task types by the next entry of its script, and then as if all
    were well.  An entry gives the
    answers to a frame: messages, or frames of their own; None in them closes the connection."""

    def __init__(self, *script: Reply, heartbeat_ms: int = 5_000) -> None:
        self.script = list(script)
        self.heartbeat_ms = heartbeat_ms
        self.frames: list[Frame] = []
        self.connections = 0
        self.beats = threading.Semaphore(0)
        self.url = ""

    def answers(self, frame: Frame) -> list[Any]:
        match frame.message:
            case m.Hello():
                self.connections += 1
                return [m.Welcome(b"s" * 16, b"k" * 32, BROKER_MS, 1, self.heartbeat_ms, 15_000, {"payload_bytes_max": 1 << 20})]
            case m.Heartbeat():
                self.beats.release()
                return [m.Beat(b"", b"")]
            case m.Bye():
                return [m.Ok()]
            case m.Inspect("types"):
                return [m.Inspected([])]
        self.frames.append(frame)
        return (self.script.pop(0) if self.script else created)(frame)

    @property
    def enqueues(self) -> list[m.Enqueue]:
        return [frame.message for frame in self.frames if isinstance(frame.message, m.Enqueue)]

    async def listen(self) -> asyncio.Server:
        """On the running loop."""
        server = await asyncio.get_running_loop().create_server(lambda: Connection(self), "127.0.0.1", 0)
        self.url = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return server


class Connection(asyncio.Protocol):
    def __init__(self, broker: Scripted) -> None:
        self.broker = broker
        self.decoder = FrameDecoder(64 << 20)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        for frame in self.decoder.feed(data):
            for answer in self.broker.answers(frame):
                self.answer(answer if isinstance(answer, Frame) else Frame(0, frame.seq, answer))

    def answer(self, answer: Frame) -> None:
        if answer.message is None:
            self.transport.abort()
        else:
            self.transport.write(b"".join(encode(answer.message, answer.seq, 0)))
