"""What a no-op task costs in the worker: from the bytes of the Deliver frame to those of the Ack frame, through decoder, Link, Runner, pool and
codec; only the socket is left out.  A round is 1,000 tasks."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from taskq import App
from taskq.core import messages as m
from taskq.protocol.codec import encode, join
from taskq.protocol.frames import Frame
from taskq.protocol.framing import FrameDecoder
from taskq.protocol.link import Answered
from taskq.worker.page import Page
from taskq.worker.runner import Runner
from taskq.worker.settings import WorkerConfig

TASKS = 1_000
PAYLOAD = b"\x81\xa2to\xb0user@example.com"

app = App()


@app.task
async def noop(to: str) -> None:
    return None


@app.task
async def yields(to: str) -> None:
    await asyncio.sleep(0)


@app.task
def sync_noop(to: str) -> None:
    return None


class Worker:
    """A Runner that is greeted and subscribed, whose frames are taken from its Link instead of being sent."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.runner = Runner(WorkerConfig("localhost:1"), app, Page(), lambda fields: None)
        self.channel, self.bench = self.runner._channel, self.runner._bench
        self.channel.loop = asyncio.get_running_loop()
        self.channel.link.opened(0)
        self.channel.link.take()
        for event in self.channel.link.receive(Frame(0, 1, m.Welcome(b"s" * 16, b"k" * 32, 0, 1, 5_000, 15_000)), 0):
            self.runner._on_event(event)
        self.decoder = FrameDecoder(64 << 20)
        self.number = 0
        self.left = 0

    async def round(self) -> None:
        data = self.deliver()
        self.left = TASKS
        for frame in self.decoder.feed(data):
            for event in self.channel.link.receive(frame, 0):
                self.runner._on_event(event)
        await self.runner._until(self.all_acked, None)

    def all_acked(self) -> bool:
        link = self.channel.link
        for frame in link.take():
            join(encode(frame.message, frame.seq))
            if isinstance(frame.message, m.Ack):
                count = len(frame.message.payloads)
                assert isinstance(link.receive(Frame(0, frame.seq, m.Reported(bytes(count))), 0)[0], Answered)
                self.left -= count
        return self.left == 0

    def deliver(self) -> bytes:
        first = self.number + 1
        self.number += TASKS
        tokens = b"".join(number.to_bytes(8, "big") for number in range(first, first + TASKS))
        message = m.Deliver([PAYLOAD] * TASKS, "default", first, bytes(16 * TASKS), tokens, [self.name], [m.MSGPACK], [1], [0])
        return b"".join(encode(message))


@pytest.mark.parametrize("name", list(app.tasks))
def test_a_round_of_1000_noop_tasks(benchmark: Any, name: str) -> None:
    with asyncio.Runner() as runner:

        async def make() -> Worker:
            return Worker(name)

        worker = runner.run(make())
        loop = runner.get_loop()
        benchmark.pedantic(lambda: loop.run_until_complete(worker.round()), rounds=30, warmup_rounds=3)
        if benchmark.stats is not None:
            benchmark.extra_info["us_per_task"] = benchmark.stats.stats.median / TASKS * 1e6
        runner.run(worker.bench.close())
