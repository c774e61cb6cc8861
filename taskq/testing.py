"""A real broker inside your tests, and a worker for it: no process to start, nothing left behind.

    async def test_mail() -> None:
        async with taskq.testing.broker(app) as node, taskq.testing.worker(app, node):
            handle = await send_email.enqueue(to="user@example.com")
            assert await handle.result(timeout=5) == "sent"

The broker listens on free ports, keeps its data in a temporary folder, and takes any setting of the broker's configuration.  With
`clock=ManualClock()` its time stands still, and `await advance(node, clock, "1h")` moves it and lets everything happen that is due by then.
`await run_until_idle(node)` waits for everything that can run now.  Tests without an event loop use `with testing.eager(app):`.
"""

from __future__ import annotations

import asyncio
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs

from taskq.app import App
from taskq.client import DEADLINE_S, AsyncClient
from taskq.clients import Connections
from taskq.clock import Clock, ManualClock, SystemClock
from taskq.config import BrokerConfig
from taskq.durations import Duration, milliseconds, seconds
from taskq.eager import EagerClients
from taskq.node import Node
from taskq.worker.loading import NoApp
from taskq.worker.page import Page
from taskq.worker.runner import Runner
from taskq.worker.settings import WorkerConfig

__all__ = ["ManualClock", "advance", "broker", "eager", "run_until_idle", "worker"]

DRAIN_S = 5.0
LOOK_S = 0.005


@asynccontextmanager
async def broker(
    app: App | None = None, *, clock: Clock | None = None, data: str | Path | None = None, token: str = "", **settings: Any
) -> AsyncIterator[Node]:
    """A running broker; its addresses are `node.tcp` and `node.http`.  `app` uses it meanwhile, and nothing else, whatever it has open; with this
    `token`, if the broker has `auth=True`.  `data`: a folder to keep, else a temporary one."""
    with tempfile.TemporaryDirectory(prefix="taskq-test-") as folder:
        options = {"listen": "127.0.0.1:0", "http": "127.0.0.1:0", "durability": "memory", "ballast_bytes": 0, **settings}
        node = Node(BrokerConfig(data=str(data or folder), **options), clock or SystemClock())
        await node.start()
        try:
            async with _using(app, node, token):
                yield node
        finally:
            await node.stop()


@asynccontextmanager
async def _using(app: App | None, node: Node, token: str) -> AsyncIterator[None]:
    """What the app had open, on this loop, on others, in threads, is put aside meanwhile: nothing that it enqueues can reach another broker."""
    if app is None:
        yield
        return
    clients = Connections(node.tcp, token, DEADLINE_S, None)
    before = app.hand_over(clients)
    try:
        yield
    finally:
        app.hand_over(before)
        await clients.close_all()


@contextmanager
def eager(app: App) -> Iterator[None]:
    """No broker and no worker: what is enqueued runs at once, in the caller, also from code without an event loop.  Its handle has the outcome."""
    before = app.hand_over(EagerClients(app))
    try:
        yield
    finally:
        app.hand_over(before)


@asynccontextmanager
async def worker(
    app: App, node: Node, *, concurrency: int = 10, queues: tuple[str, ...] = (), name: str = "test", token: str = ""
) -> AsyncIterator[Runner]:
    """A worker for the app's tasks in this process, on this loop.  Tasks with pool="process" run in threads here, since a test's module need not be
    one that a child could import.  `token`: its access token, for a broker with `auth=True`."""
    page = Page()
    config = WorkerConfig(connect=node.tcp, queues=queues, concurrency=concurrency, drain_s=DRAIN_S, name=name, token=token)
    runner = Runner(config, _without_processes(app), page, lambda _: None)
    running = asyncio.get_running_loop().create_task(runner.run())
    try:
        yield runner
    finally:
        runner.stop(1)
        await running
        with suppress(ValueError, RuntimeError):
            asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
        page.close()


def _without_processes(app: App) -> NoApp:
    return NoApp({name: attrs.evolve(task, pool="thread") if task.pool == "process" else task for name, task in app.tasks.items()})


async def run_until_idle(node: Node, timeout: Duration = 30.0) -> None:
    """Wait until nothing is pending or running, whatever tasks have enqueued meanwhile.  What is scheduled or waits to be retried needs `advance`.
    TimeoutError says what there still is."""
    until_s = time.monotonic() + seconds(timeout, "timeout")
    async with AsyncClient(node.tcp) as client:
        while busy := [row for row in await client.queues() if row["pending"] or row["running"]]:
            if time.monotonic() >= until_s:
                left = ", ".join(f"{row['pending']} pending and {row['running']} running in queue {row['queue']}" for row in busy)
                raise TimeoutError(f"after {timeout} there are still {left}")
            await asyncio.sleep(LOOK_S)


async def advance(node: Node, clock: ManualClock, duration: Duration) -> None:
    """Move the broker's clock.  On return every shard has looked at it: delayed tasks and retries that are due by then are pending or delivered."""
    clock.advance(seconds(duration))
    node.excuse(milliseconds(duration))
    async with AsyncClient(node.tcp) as client:
        await client.queues()
