"""A producer that speaks HTTP: it enqueues, looks and cancels over the other door, one request at a time on a connection.

What a whole response says is a promise, as over TCP; a connection that ends before is an unknown, and the same ids are sent again.
"""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import httptools
from sim.clients import Scene, Violation
from sim.loop import Process

from taskq.core import messages as m
from taskq.gateway.answers import STATUS
from taskq.ids import make_id, slot_of_queue

PATIENCE_S = 30.0


class _Exchange(asyncio.Protocol):
    """One connection: sends a request, collects one whole response."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._parser = httptools.HttpResponseParser(self)
        self._body = b""
        self.transport: Any = None
        self.answer: asyncio.Future[tuple[int, Any] | None] | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self._finish(None)

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        body, self._body = self._body, b""
        if self.answer is None or self.answer.done():
            self._caller.wrong(f"{self._caller.name} got an answer that it did not ask for")
        self._finish((self._parser.get_status_code(), json.loads(body)))

    def _finish(self, answer: tuple[int, Any] | None) -> None:
        if self.answer is not None and not self.answer.done():
            self.answer.set_result(answer)


class Caller:
    """See the module."""

    def __init__(self, scene: Scene, name: str) -> None:
        self.scene, self.name = scene, name
        self.process = Process(scene.loop, name)
        self.wrong = scene.wrong
        self.idle = True
        self.made: list[bytes] = []
        self.told: list[dict[str, Any]] = []
        self.sent = 0
        self.troubled_s = -math.inf
        self._exchange: _Exchange | None = None
        self.process.spawn(self._live())

    def trouble(self) -> None:
        """It holds no lease."""

    async def _live(self) -> None:
        rng, again = self.scene.rng, None
        while not self.scene.calm or again is not None:
            self.idle = False
            again = await self._turn(again)
            self.idle = again is None
            await asyncio.sleep(rng.uniform(0.0, rng.choice([0.5, 4.0])))

    async def _turn(self, again: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
        """One request; the tasks of an enqueue whose outcome is unknown."""
        choice = self.scene.rng.random()
        try:
            if again is not None or choice < 0.6 or not self.made:
                old = again is None and self.told and self.scene.rng.random() < 0.2
                tasks = [self.scene.rng.choice(self.told)] if old else again or self._tasks()
                return None if await self._enqueue(tasks) else tasks
            task_id, sure = self.scene.rng.choice(self.made), self.scene.history.acknowledgements
            if choice < 0.9:
                self._looked(task_id, sure, await self._ask("GET", f"/v1/tasks/{task_id.hex()}?wait={self.scene.rng.choice([0, 0, 10])}"))
            else:
                self._cancelled(task_id, sure, await self._ask("DELETE", f"/v1/tasks/{task_id.hex()}"))
        except (OSError, TimeoutError):
            return again
        except Violation as violation:
            self.wrong(str(violation))
        return None

    def _tasks(self) -> list[dict[str, Any]]:
        rng, scene = self.scene.rng, self.scene
        tasks = []
        for _ in range(rng.choice([1, 1, 2, 8])):
            self.sent += 1
            queue = rng.choice(scene.queues)
            made = make_id(scene.clock.now_ms(), slot_of_queue(queue), rng)
            text = f"{self.name} {self.sent}"
            scene.history.sent[json.dumps(text).encode()] = None
            tasks.append(
                {"task_type": rng.choice(scene.task_types), "queue": queue, "id": made.hex(), "payload": text, "delay": rng.choice([0, 0, 3])}
            )
        return tasks

    async def _enqueue(self, tasks: list[dict[str, Any]]) -> bool:
        status, body = await self._ask("POST", "/enqueue", json.dumps(tasks).encode())
        if status == 503:
            return False
        told = [(asked, answer) for asked, answer in zip(tasks, body["tasks"], strict=True) if "error" not in answer]
        ids = [bytes.fromhex(answer["id"]) for _, answer in told]
        self.made += ids
        self.told += [asked for asked, _ in told if asked not in self.told]
        self.scene.history.enqueued([json.dumps(asked["payload"]).encode() for asked, _ in told], ids, bytes([m.CREATED]) * len(ids))
        return True

    def _looked(self, task_id: bytes, sure: int, answer: tuple[int, Any]) -> None:
        status, body = answer
        if status == 200:
            self.scene.history.shown(task_id, body["state"])
        elif status == 404:
            self.scene.history.not_found(task_id, sure)

    def _cancelled(self, task_id: bytes, sure: int, answer: tuple[int, Any]) -> None:
        self._looked(task_id, sure, answer)

    async def _ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, Any]:
        """The whole response.  OSError, TimeoutError: what became of the request is not known."""
        exchange = self._exchange
        if exchange is None or exchange.transport is None or exchange.transport.is_closing():
            _, exchange = await asyncio.wait_for(self.scene.loop.create_connection(lambda: _Exchange(self), "broker", 3000), PATIENCE_S)
            self._exchange = exchange
        exchange.answer = self.scene.loop.create_future()
        self.scene.trace(self.name, f"→ {method} {path} {body.decode()}")
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        exchange.transport.write(head.encode() + body)
        try:
            answer = await asyncio.wait_for(exchange.answer, PATIENCE_S)
        except TimeoutError:
            if exchange.transport is not None:
                exchange.transport.abort()
            raise
        if answer is None:
            raise ConnectionResetError("the connection ended before the answer")
        status, shown = answer
        self.scene.trace(self.name, f"← {status} {shown}")
        if "error" in shown and STATUS.get(shown["error"]["code"]) != status:
            raise Violation(f"{self.name} was refused with {status} {shown['error']}")
        return status, shown
