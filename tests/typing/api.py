"""Checked by mypy only, never run: what users write is typed, and wrong arguments are errors (an ignore that is not needed is one too)."""

from __future__ import annotations

from collections.abc import Coroutine
from datetime import timedelta
from typing import Any, assert_type

from taskq import App, AsyncClient, Client, TaskFunction, TaskHandle, TaskInfo

app = App()


@app.task
def add(left: int, right: int = 0) -> int:
    return left + right


@app.task(queue="email", priority="high", max_attempts=5, timeout=30, backoff_base="2s", retry_on=(ConnectionError,), no_retry_on=ValueError)
async def send_email(to: str, *, copies: list[str] | None = None) -> str:
    return to


@app.task(name="reports.build", pool="process", timeout=timedelta(minutes=5))
def build(rows: dict[str, int]) -> dict[str, float]:
    return {name: float(count) for name, count in rows.items()}


assert_type(add(1, 2), int)
call: Coroutine[Any, Any, str] = send_email(to="a")
later: TaskFunction[..., int, int] = add.options(delay="5m", priority="low", key="k")


async def enqueue() -> None:
    handle = await send_email.enqueue(to="user@example.com")
    assert_type(handle, TaskHandle[str])
    assert_type(await handle.result(timeout=10), str)
    assert_type(await handle.state(), str)
    assert_type(await handle.info(), TaskInfo)
    assert_type(await handle.cancel(), str)
    assert_type(await add.enqueue(1, right=2), TaskHandle[int])
    assert_type(await send_email.enqueue_many([{"to": "a"}, {"to": "b"}]), list[TaskHandle[str]])
    assert_type(await build.options(queue="slow", delay=timedelta(hours=1)).enqueue({"a": 1}), TaskHandle[dict[str, float]])


async def wrong_arguments() -> None:
    await send_email.enqueue(to=1)  # type: ignore[arg-type]
    await send_email.enqueue()  # type: ignore[call-arg]
    await send_email.enqueue(to="a", subject="b")  # type: ignore[call-arg]
    await add.enqueue("1")  # type: ignore[arg-type]
    add.enqueue_sync(1, 2, 3)  # type: ignore[call-arg]
    add("1")  # type: ignore[arg-type]
    add.options(priority=[1])  # type: ignore[arg-type]
    add.options(colour="red")  # type: ignore[call-arg]
    app.task(pool="fibre")  # type: ignore[call-overload]
    await send_email.enqueue_many(["a"])  # type: ignore[list-item]


def from_sync_code() -> None:
    handle = add.enqueue_sync(1, 2)
    assert_type(handle.result_sync(timeout="10s"), int)
    assert_type(add.enqueue_many_sync([{"left": 1}]), list[TaskHandle[int]])
    with Client("localhost:7000", deadline=5) as client:
        assert_type(client.enqueue("send_email", {"to": "a"}, queue="email", retry=("2s", 2.0, "1h")), TaskHandle[Any])
        assert_type(client.queues(), list[dict[str, Any]])
        client.enqueue("send_email", {}, timeout=[1])  # type: ignore[arg-type]


async def by_name() -> None:
    async with AsyncClient() as client:
        assert_type(await client.enqueue_many("add", [{"left": 1}, [1, 2]]), list[TaskHandle[Any]])
        assert_type(await client.get("0" * 32), TaskInfo)
