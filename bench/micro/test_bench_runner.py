"""What a no-op task costs in the worker: from the Deliver frame to the Ack frame, sockets and codec left out.  A round is 1,000 tasks."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from taskq import ids
from taskq.core import messages as m
from taskq.protocol.frames import Frame
from taskq.protocol.link import Answered, Event, Link, Pushed
from taskq.worker.job import Job, Outcome
from taskq.worker.page import Page
from taskq.worker.registry import TaskDefinition
from taskq.worker.reports import Reports
from taskq.worker.workbench import Workbench

TASKS = 1_000
PAYLOAD = b"\x81\xa2to\xb0user@example.com"


async def noop(to: str) -> None:
    return None


async def yields(to: str) -> None:
    await asyncio.sleep(0)


def sync_noop(to: str) -> None:
    return None


class Worker:
    """The parts of the runner between the frames, around a Link whose frames go nowhere."""

    def __init__(self, function: Any) -> None:
        self.page = Page()
        self.definition = TaskDefinition("noop", function)
        self.reports = Reports()
        self.all_done = asyncio.Event()
        self.bench = Workbench("", 100, self.page, self.report, self.failed)
        self.link = Link(m.Hello(1, "worker"))
        self.link.opened(0)
        self.link.take()
        self.link.receive(Frame(0, 1, m.Welcome(b"s" * 16, b"k" * 32, 0, 1, 5_000, 15_000)), 0)
        self.left = 0
        self.number = 0

    def failed(self, error: BaseException) -> None:
        raise error

    def report(self, job: Job, outcome: Outcome) -> None:
        assert isinstance(outcome, bytes), outcome
        self.reports.add(job, outcome)
        self.left -= 1
        if not self.left:
            self.all_done.set()

    async def round(self) -> None:
        self.left = TASKS
        self.all_done.clear()
        for event in self.link.receive(Frame(0, 0, self.deliver()), 0):
            self.receive(event)
        await self.all_done.wait()
        for message in self.reports.take():
            self.link.request(message, message)
        for frame in self.link.take():
            answer = Frame(0, frame.seq, m.Reported(bytes(len(frame.message.tokens) // 8)))
            assert isinstance(self.link.receive(answer, 0)[0], Answered)

    def deliver(self) -> m.Deliver:
        first = self.number + 1
        self.number += TASKS
        tokens = b"".join(number.to_bytes(8, "big") for number in range(first, first + TASKS))
        return m.Deliver([PAYLOAD] * TASKS, "default", first, bytes(16 * TASKS), tokens, ["noop"], [m.MSGPACK], [1], [0])

    def receive(self, event: Event) -> None:
        assert isinstance(event, Pushed)
        message = event.message
        self.page.received = self.link.received
        rows = zip(ids.split(message.ids, 16), ids.split(message.tokens, 8), message.payloads, strict=True)
        definition, pool = self.definition, self.definition.pool_for()
        self.bench.put([Job(task_id, token, "default", definition, payload, m.MSGPACK, 1, 0, pool) for task_id, token, payload in rows])


@pytest.mark.parametrize("function", [noop, yields, sync_noop])
def test_a_round_of_1000_noop_tasks(benchmark: Any, function: Any) -> None:
    with asyncio.Runner() as runner:

        async def make() -> Worker:
            return Worker(function)

        worker = runner.run(make())
        loop = runner.get_loop()
        benchmark.pedantic(lambda: loop.run_until_complete(worker.round()), rounds=30, warmup_rounds=3)
        benchmark.extra_info["us_per_task"] = benchmark.stats.stats.median / TASKS * 1e6
        runner.run(worker.bench.close())
