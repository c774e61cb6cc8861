"""What the Python clients share: the environment they are told by, the mark of a task, the modes of a producer.  `contract.py` is the contract."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import uvloop

HOST = "127.0.0.1"
PORT = int(os.environ["BENCH_PORT"])
SETTINGS: dict[str, Any] = json.loads(os.environ["BENCH_SETTINGS"])
STAMPS = os.environ["BENCH_STAMPS"] == "1"
RESULTS = os.environ["BENCH_RESULTS"] == "1"
TO = "user@example.com"
LOW_LOAD_S = 0.01
RECEIVE_BYTES = 1 << 18

_marks = os.open(os.environ["BENCH_MARKS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
_stamp = struct.Struct("=qq")


def mark(n: int) -> None:
    """The work of a task."""
    os.write(_marks, _stamp.pack(n, time.monotonic_ns()) if STAMPS else b"x")


def payload(n: int) -> dict[str, Any]:
    return {"to": TO, "n": n}


def chunks(numbers: Sequence[int], count: int) -> Iterator[Sequence[int]]:
    return (numbers[at : at + count] for at in range(0, len(numbers), count))


async def _maybe(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


class Producer:
    """`one` enqueues a task and returns when it is acknowledged, `bulk` all of a range, `answer` gives the result; plain functions or coroutines."""

    def __init__(self, one: Callable[[int], Any], bulk: Callable[[range], Any], answer: Callable[[int], Any] | None = None) -> None:
        self._one, self._bulk, self._answer = one, bulk, answer

    def run(self, open: Callable[[], Any] | None = None, close: Callable[[], Any] | None = None) -> None:
        """What the command line says."""
        uvloop.run(self._run(open, close))

    async def _run(self, open: Callable[[], Any] | None, close: Callable[[], Any] | None) -> None:
        _, _, mode, first, tasks = sys.argv
        if open is not None:
            await _maybe(open())
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        found = await getattr(self, f"_mode_{mode}")(range(int(first), int(first) + int(tasks)))
        print(json.dumps(found), flush=True)
        if close is not None:
            await _maybe(close())

    async def _mode_one_by_one(self, numbers: range) -> dict[str, Any]:
        started_ns = time.monotonic_ns()
        for n in numbers:
            await _maybe(self._one(n))
        return {"started_ns": started_ns, "ended_ns": time.monotonic_ns()}

    async def _mode_bulk(self, numbers: range) -> dict[str, Any]:
        started_ns = time.monotonic_ns()
        await _maybe(self._bulk(numbers))
        return {"started_ns": started_ns, "ended_ns": time.monotonic_ns()}

    async def _mode_low_load(self, numbers: range) -> dict[str, Any]:
        sent_ns = []
        begin_s = time.monotonic()
        for i, n in enumerate(numbers):
            await asyncio.sleep(max(0.0, begin_s + i * LOW_LOAD_S - time.monotonic()))
            sent_ns.append(time.monotonic_ns())
            await _maybe(self._one(n))
        return {"sent_ns": sent_ns}

    async def _mode_round_trips(self, numbers: range) -> dict[str, Any]:
        assert self._answer is not None
        us = []
        for n in numbers:
            begin_ns = time.monotonic_ns()
            if await _maybe(self._answer(n)) != n:
                raise RuntimeError(f"the result of task {n} is another")
            us.append((time.monotonic_ns() - begin_ns) / 1000)
        return {"us": us}


def working() -> bool:
    return sys.argv[1] == "work"


class Connection:
    """A blocking socket, for the protocols that have no client library that pipelines."""

    def __init__(self) -> None:
        self._socket = socket.create_connection((HOST, PORT))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = bytearray()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def fill(self) -> None:
        data = self._socket.recv(RECEIVE_BYTES)
        if not data:
            raise ConnectionError("the server closed the connection")
        self.buffer += data
