"""Very many worker sessions in one process: `python crowd.py HOST:PORT SESSIONS QUEUES CREDIT`.

Each session takes the queues q0 … and the task type `noop`, runs what it is given at once and acknowledges it; `noop` is no function, so that what is
measured is the broker.  A payload begins with the nanoseconds (8 bytes) at which its task was enqueued.  It says `ready` when all sessions have
subscribed; a line on stdin is answered with what was counted since the line before: runs, the ids of which are checked to be new, the latencies from
enqueue to start in µs, and the heartbeats.  It goes on to count until it is ended.
"""

from __future__ import annotations

import asyncio
import random
import resource
import sys
import time
from pathlib import Path
from typing import Any

import uvloop

sys.path.append(str(Path(__file__).parents[1] / "load"))

from children import last_words

from taskq import ids
from taskq.connection import Address, Channel, hello
from taskq.core import messages as m
from taskq.protocol.link import Answered, Event, Pushed, Ready, Refused

STAMP_BYTES = 8
OPENING = 50


class Counted:
    """What all sessions of the process saw."""

    def __init__(self) -> None:
        self.runs = self.acked = self.beats = 0
        self.us: list[float] = []
        self.last_ns = 0
        self._seen: set[bytes] = set()

    def run(self, message: m.Deliver) -> None:
        now_ns = time.monotonic_ns()
        for task_id, payload in zip(ids.split(message.ids, ids.ID_BYTES), message.payloads, strict=True):
            if task_id in self._seen:
                raise RuntimeError(f"task {task_id.hex()} was delivered twice")
            self._seen.add(task_id)
            self.us.append((now_ns - int.from_bytes(bytes(payload[:STAMP_BYTES]), "big")) / 1000)
        self.runs += len(message.payloads)

    def take(self) -> dict[str, Any]:
        us, self.us = self.us, []
        return {"runs": self.runs, "acked": self.acked, "beats": self.beats, "us": us, "last_ns": self.last_ns}


class Worker:
    def __init__(self, url: str, name: str, queues: list[str], credit: int, counted: Counted) -> None:
        self.channel = Channel(Address.parse(url), hello("worker", name), self._event)
        self.subscribed = asyncio.Event()
        self._queues, self._credit, self._counted = queues, credit, counted
        self._acks: list[tuple[bytes, bytes]] = []

    def _event(self, event: Event | Any) -> None:
        if isinstance(event, Ready):
            self._keep_time(event.welcome)
            self.channel.request(m.Consume(self._queues, ["noop"], max(1, self._credit)), "consume")
            if self._credit:
                self.channel.credit(self._credit)
        elif isinstance(event, Pushed) and type(event.message) is m.Deliver:
            self._run(event.message)
        elif isinstance(event, Answered):
            self._answered(event)
        elif isinstance(event, Refused):
            raise RuntimeError(str(event.error))

    def _keep_time(self, welcome: m.Welcome) -> None:
        """Sessions that were opened at once beat out of step all the same, as those of different machines do."""
        link = self.channel.link
        link._beat_at = self.channel._now_ms() + random.randrange(welcome.heartbeat_ms)
        link._wake(link._beat_at)

    def _run(self, message: m.Deliver) -> None:
        self._counted.run(message)
        self.channel.request(m.Ack([b""] * len(message.payloads), message.ids, message.tokens), len(message.payloads))

    def _answered(self, event: Answered) -> None:
        if event.owner == "consume":
            self.subscribed.set()
            return
        if any(event.message.outcomes):
            raise RuntimeError("an ack was refused")
        self._counted.acked += event.owner
        self._counted.last_ns = time.monotonic_ns()
        self.channel.credit(self._credit)


async def main() -> None:
    url, (sessions, queues, credit) = sys.argv[1], map(int, sys.argv[2:5])
    names = [f"q{number}" for number in range(queues)]
    counted = Counted()
    workers: list[Worker] = []
    for number in range(sessions):
        worker = Worker(url, f"w{number}", names, credit, counted)
        heartbeat = worker.channel.link._heartbeat

        def beat(now_ms: int, heartbeat: Any = heartbeat) -> None:
            counted.beats += 1
            heartbeat(now_ms)

        worker.channel.link._heartbeat = beat  # type: ignore[method-assign]
        worker.channel.start()
        workers.append(worker)
        if number % OPENING == OPENING - 1:
            await workers[-1].subscribed.wait()
    for worker in workers:
        await worker.subscribed.wait()
    print("ready", flush=True)
    loop = asyncio.get_running_loop()
    while await loop.run_in_executor(None, sys.stdin.readline):
        last_words(**counted.take())


if __name__ == "__main__":
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
