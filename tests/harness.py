"""A workbench with its three pools and without a broker, whose reports can be awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from taskq import serial
from taskq.core.messages import MSGPACK
from taskq.worker.job import Job, Outcome
from taskq.worker.page import Page
from taskq.worker.registry import TaskDefinition, Verdict
from taskq.worker.workbench import Workbench

REPORT_S = 10.0


class Harness:
    """`app`: what children of the process pool import."""

    def __init__(self, concurrency: int, app: str = "") -> None:
        self.page = Page()
        self.bugs: list[BaseException] = []
        self.reports: asyncio.Queue[tuple[Job, Outcome]] = asyncio.Queue()
        self.bench = Workbench(app, concurrency, self.page, lambda job, outcome: self.reports.put_nowait((job, outcome)), self.bugs.append)
        self._number = 0

    def job(self, function: Callable[..., Any], *args: Any, pool: str | None = None, timeout_ms: int = 0, **options: Any) -> Job:
        self._number += 1
        definition = TaskDefinition(function.__name__, function, **options)
        token = self._number.to_bytes(8, "big")
        return Job(bytes(8) + token, token, "default", definition, serial.encode(list(args)), MSGPACK, 1, timeout_ms, pool or definition.pool_for())

    async def outcome(self, function: Callable[..., Any], *args: Any, **options: Any) -> Outcome:
        self.bench.put([self.job(function, *args, **options)])
        return await self.report()

    async def report(self) -> Outcome:
        async with asyncio.timeout(REPORT_S):
            return (await self.reports.get())[1]


def value(outcome: Outcome) -> Any:
    assert isinstance(outcome, bytes), outcome
    return serial.decode(outcome, MSGPACK)


def verdict(outcome: Outcome) -> Verdict:
    assert isinstance(outcome, Verdict), outcome
    return outcome
