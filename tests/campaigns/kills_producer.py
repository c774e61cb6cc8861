"""A producer of the crash campaign, a process of its own: does everything that a client can, and writes down each call before and after it.

    python -m campaigns.kills_producer --tcp HOST:PORT --http HOST:PORT --name a --seed 1 --history FILE

A line is a JSON object: `call` (a number), `phase` (invoke; then ok, refused or unknown), `at` (monotonic ns) and what was asked or answered.
Each task has a name of its own, inside its payload, by which it is known even if its id never came back.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any

from taskq import AsyncClient, TaskqError, connection, ids
from taskq.batch import enqueue_message
from taskq.client import encode_payload
from taskq.errors import BrokerUnavailable, ResultTimeout, from_wire
from taskq.options import DEFAULTS
from taskq.protocol.codec import encode

LANES = 16
PAUSE_S = 0.02
BATCH_TASKS = (2, 40)
DELAY_S = (0.05, 1.0)
KNOWN_MAX = 200
DEADLINE_S = 5.0
RETRY = (0.03, 1.0, 0.03)
CUT_AFTER_S = (0.0, 0.0, 0.001, 0.003, 0.01)
MAX_ATTEMPTS = {"doomed": 2}
ATTEMPTS = 6


class Producer:
    def __init__(self, options: argparse.Namespace) -> None:
        self.rng = random.Random(options.seed)
        self.client = AsyncClient(options.tcp, deadline=DEADLINE_S, name=options.name)
        self.tcp, self.http = connection.Address.parse(options.tcp), connection.Address.parse(options.http)
        self.name = options.name
        self.stopping = asyncio.Event()
        self.known: list[str] = []
        self._fd = os.open(options.history, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._calls, self._names = count(1), count(1)

    # ---- the history

    def note(self, phase: str, call: int, **facts: Any) -> None:
        line = {"producer": self.name, "call": call, "phase": phase, "at": time.monotonic_ns(), **facts}
        os.write(self._fd, json.dumps(line).encode() + b"\n")

    async def ask(self, op: str, work: Callable[[], Awaitable[dict[str, Any]]], **asked: Any) -> dict[str, Any]:
        """One call, written down before and after; what was answered, {} if it was refused or never answered."""
        call = next(self._calls)
        self.note("invoke", call, op=op, **asked)
        try:
            answer = await work()
        except (BrokerUnavailable, ResultTimeout, OSError, asyncio.IncompleteReadError):
            self.note("unknown", call)
            return {}
        except TaskqError as error:
            self.note("refused", call, code=error.code)
            return {}
        self.note("ok", call, **answer)
        return answer

    # ---- what is enqueued

    def task(self) -> tuple[str, dict[str, Any]]:
        """Task type and payload of a new task."""
        name = f"{self.name}-{next(self._names)}"
        kind = self.rng.choices(("quick", "nap", "block", "flaky", "doomed"), (60, 10, 5, 20, 5))[0]
        payload: dict[str, Any] = {"name": name}
        if kind in ("nap", "block"):
            payload["seconds"] = round(self.rng.uniform(0.05, 0.3), 3)
        if kind == "flaky":
            payload["fails"] = self.rng.randint(1, 3)
        return kind, payload

    def options(self, kind: str, **more: Any) -> dict[str, Any]:
        common = {"queue": "load", "priority": self.rng.randint(3, 6), "max_attempts": MAX_ATTEMPTS.get(kind, ATTEMPTS), "retry": RETRY}
        return {**common, **more}

    async def enqueue(self, kind: str, payload: dict[str, Any], **options: Any) -> dict[str, Any]:
        async def work() -> dict[str, Any]:
            handle = await self.client.enqueue(kind, payload, **options)
            return {"ids": [handle.id], "level": handle.durability}

        asked = {name: options[name] for name in ("delay", "key", "id") if name in options}
        answer = await self.ask("enqueue", work, kind=kind, tasks=[payload], **asked)
        self.known += answer.get("ids", [])
        del self.known[:-KNOWN_MAX]
        return answer

    # ---- the calls

    async def one(self) -> None:
        kind, payload = self.task()
        await self.enqueue(kind, payload, **self.options(kind))

    async def delayed(self) -> None:
        kind, payload = self.task()
        await self.enqueue(kind, payload, **self.options(kind, delay=round(self.rng.uniform(*DELAY_S), 3)))

    async def shelf(self) -> None:
        """A task that nobody works on: it stays, over all restarts."""
        await self.enqueue("shelved", {"name": f"{self.name}-{next(self._names)}"}, queue="shelf")

    async def many(self) -> None:
        kind, payload = self.task()
        fields = [{**payload, "name": f"{self.name}-{next(self._names)}"} for _ in range(self.rng.randint(*BATCH_TASKS))]

        async def work() -> dict[str, Any]:
            handles = await self.client.enqueue_many(kind, fields, **self.options(kind))  # type: ignore[arg-type]
            return {"ids": [handle.id for handle in handles], "level": handles[0].durability}

        if kind in ("quick", "flaky"):
            await self.ask("enqueue", work, kind=kind, tasks=fields)

    async def keyed(self) -> None:
        """Twice with the same key: it is one task."""
        kind, payload = self.task()
        options = self.options(kind, key=payload["name"])
        for _ in range(2):
            await self.enqueue(kind, payload, **options)
            await self.pause()

    async def sent_again(self) -> None:
        """Twice with the same id, at once or long after it was done."""
        kind, payload = self.task()
        options = self.options(kind, id=self.new_id().hex())
        for _ in range(2):
            await self.enqueue(kind, payload, **options)
            await asyncio.sleep(self.rng.choice((0.0, 0.1, 2.5)))

    async def cut(self) -> None:
        """Execute and time out: the request leaves, the connection is cut, the same is sent again later."""
        kind, payload = self.task()
        task_id = self.new_id()
        options = self.options(kind, id=task_id.hex())
        message = enqueue_message("load", [encode_payload(payload, kind)], [kind], [DEFAULTS.but(options)], lambda: task_id)  # type: ignore[arg-type]
        frames = [*encode(connection.hello("producer", "cut"), 1), *encode(message, 2)]

        async def work() -> dict[str, Any]:
            _, writer = await asyncio.open_connection(self.tcp.host, self.tcp.port)
            writer.write(b"".join(frames))
            await asyncio.sleep(self.rng.choice(CUT_AFTER_S))
            writer.transport.abort()
            raise ConnectionResetError

        await self.ask("enqueue", work, kind=kind, tasks=[payload], id=task_id.hex())
        if self.rng.random() < 0.8:
            await asyncio.sleep(self.rng.choice((0.0, 0.05, 2.0)))
            await self.enqueue(kind, payload, **options)

    async def over_http(self) -> None:
        kind, payload = self.task()
        body = {"task_type": kind, "payload": payload, **self.options(kind), "retry": dict(zip(("base", "factor", "max"), RETRY, strict=True))}
        if self.rng.random() < 0.5:
            body["id"] = self.new_id().hex()

        async def work() -> dict[str, Any]:
            made = await self.post("/enqueue", body)
            return {"ids": [made["id"]], "level": made["durability"]}

        for _ in range(2 if "id" in body else 1):
            await self.ask("enqueue", work, kind=kind, tasks=[payload], **({"id": body["id"]} if "id" in body else {}))
            await asyncio.sleep(self.rng.choice((0.0, 2.5)) if "id" in body else 0)

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        data = json.dumps(body).encode()
        async with asyncio.timeout(DEADLINE_S):
            reader, writer = await asyncio.open_connection(self.http.host, self.http.port)
            try:
                head = f"POST {path} HTTP/1.1\r\nHost: {self.http}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
                writer.write(head.encode() + data)
                status = await reader.readuntil(b"\r\n\r\n")
                size = next(int(line.split(b":")[1]) for line in status.split(b"\r\n") if line.lower().startswith(b"content-length:"))
                answer: dict[str, Any] = json.loads(await reader.readexactly(size))
            finally:
                writer.close()
        if int(status.split()[1]) >= 400:
            raise from_wire(answer["error"]["code"], answer["error"]["message"])
        return answer

    async def look(self) -> None:
        if not self.known:
            return
        task_id = self.rng.choice(self.known)

        async def work() -> dict[str, Any]:
            info = await self.client.get(task_id)
            return {"state": info.state, "result": info.result}

        await self.ask("get", work, id=task_id)

    async def wait(self) -> None:
        """For a new task's end, told by the broker."""
        kind, payload = self.task()
        answer = await self.enqueue(kind, payload, **self.options(kind))
        for task_id in answer.get("ids", ()):

            async def work(task_id: str = task_id) -> dict[str, Any]:
                info = await self.client.wait(task_id, timeout=2)
                return {"state": info.state, "result": info.result}

            await self.ask("get", work, id=task_id)

    async def cancel(self) -> None:
        kind, payload = self.task()
        answer = await self.enqueue(kind, payload, **self.options(kind, delay=self.rng.choice((0, 0, 0.2))))
        for task_id in answer.get("ids", ()):

            async def work(task_id: str = task_id) -> dict[str, Any]:
                return {"answer": await self.client.cancel(task_id)}

            await self.ask("cancel", work, id=task_id)

    # ---- the run

    def new_id(self) -> bytes:
        return ids.make_id(time.time_ns() // 1_000_000, ids.slot_of_queue("load"), self.rng)

    async def pause(self) -> None:
        await asyncio.sleep(self.rng.expovariate(1 / PAUSE_S))

    async def lane(self) -> None:
        works, weights = zip(*WEIGHTS.items(), strict=True)
        while not self.stopping.is_set():
            await self.rng.choices(works, weights)[0](self)
            await self.pause()

    async def run(self) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.stopping.set)
        async with self.client:
            await asyncio.gather(*(self.lane() for _ in range(LANES)))


WEIGHTS: dict[Callable[[Producer], Awaitable[None]], int] = {
    Producer.one: 24,
    Producer.many: 8,
    Producer.delayed: 8,
    Producer.shelf: 8,
    Producer.keyed: 6,
    Producer.sent_again: 6,
    Producer.cut: 6,
    Producer.over_http: 8,
    Producer.look: 12,
    Producer.wait: 6,
    Producer.cancel: 8,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("tcp", "http", "name", "history"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--seed", required=True, type=int)
    connection.BACKOFF_MAX_S = 0.1  # a cycle is a second long
    asyncio.run(Producer(parser.parse_args()).run())


if __name__ == "__main__":
    main()
