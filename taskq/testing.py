"""A real broker inside your tests, and a worker for it: no process to start, nothing left behind.

    async def test_mail() -> None:
        async with taskq.testing.broker(app) as node, taskq.testing.worker(app, node):
            handle = await send_email.enqueue(to="user@example.com")
            assert await handle.result(timeout=5) == "sent"

The broker listens on free ports, keeps its data in a temporary folder, and takes any setting of the broker's configuration.  With
`clock=ManualClock()` its time stands still, and `await advance(node, clock, "1h")` moves it and lets everything happen that is due by then.
"""

from __future__ import annotations

import asyncio
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from taskq.app import App
from taskq.client import AsyncClient
from taskq.clock import Clock, ManualClock, SystemClock
from taskq.config import BrokerConfig
from taskq.durations import Duration, milliseconds, seconds
from taskq.node import Node
from taskq.worker.page import Page
from taskq.worker.runner import Runner
from taskq.worker.settings import WorkerConfig

__all__ = ["ManualClock", "advance", "broker", "worker"]

DRAIN_S = 5.0


@asynccontextmanager
async def broker(app: App | None = None, *, clock: Clock | None = None, data: str | Path | None = None, **settings: Any) -> AsyncIterator[Node]:
    """A running broker; its addresses are `node.tcp` and `node.http`.  `app` uses it meanwhile.  `data`: a folder to keep, else a temporary one."""
    with tempfile.TemporaryDirectory(prefix="taskq-test-") as folder:
        options = {"listen": "127.0.0.1:0", "http": "127.0.0.1:0", "durability": "memory", "ballast_bytes": 0, **settings}
        node = Node(BrokerConfig(data=str(data or folder), **options), clock or SystemClock())
        await node.start()
        try:
            async with _using(app, node):
                yield node
        finally:
            await node.stop()


@asynccontextmanager
async def _using(app: App | None, node: Node) -> AsyncIterator[None]:
    if app is None:
        yield
        return
    before = app.use(node.tcp)
    try:
        yield
    finally:
        await app.close()
        app.use(before)


@asynccontextmanager
async def worker(
    app: App, node: Node, *, concurrency: int = 10, queues: tuple[str, ...] = (), name: str = "test", token: str = ""
) -> AsyncIterator[Runner]:
    """A worker for the app's tasks in this process, on this loop.  Tasks with pool="process" need a real worker.  `token`: its access token, for
    a broker with `auth=True`."""
    page = Page()
    config = WorkerConfig(connect=node.tcp, queues=queues, concurrency=concurrency, drain_s=DRAIN_S, name=name, token=token)
    runner = Runner(config, app, page, lambda _: None)
    running = asyncio.get_running_loop().create_task(runner.run())
    try:
        yield runner
    finally:
        runner.stop(1)
        await running
        with suppress(ValueError, RuntimeError):
            asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
        page.close()


async def advance(node: Node, clock: ManualClock, duration: Duration) -> None:
    """Move the broker's clock.  On return every shard has looked at it: delayed tasks and retries that are due by then are pending or delivered."""
    clock.advance(seconds(duration))
    node.excuse(milliseconds(duration))
    async with AsyncClient(node.tcp) as client:
        await client.queues()
