"""The options of a function hold when it is enqueued by name, through every door."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from taskq import App, AsyncClient, Client, TaskHandle, testing
from taskq.errors import StartError
from taskq.node import Node

app = App()


@app.task(queue="mail", priority=1, max_attempts=3, timeout="30s", backoff_base=60, backoff_factor=3.0, backoff_max="2h")
async def send(to: str) -> str:
    return to


DECLARED = {"queue": "mail", "priority": 1, "max_attempts": 3, "timeout_ms": 30_000, "retry": [60_000, 3.0, 7_200_000]}
Enqueue = Callable[..., Coroutine[Any, Any, str]]


async def by_async_client(node: Node, **options: Any) -> str:
    async with AsyncClient(node.tcp) as client:
        return (await client.enqueue("send", {"to": "a"}, **options)).id


async def by_enqueue_many(node: Node, **options: Any) -> str:
    async with AsyncClient(node.tcp) as client:
        return (await client.enqueue_many("send", [{"to": "a"}], **options))[0].id


async def by_client(node: Node, **options: Any) -> str:
    def enqueue() -> TaskHandle[Any]:
        with Client(node.tcp) as client:
            client.enqueue("send", {"to": "first"})
            return client.enqueue("send", {"to": "a"}, **options)

    return (await asyncio.to_thread(enqueue)).id


async def by_http(node: Node, **options: Any) -> str:
    body = json.dumps({"task_type": "send", "payload": {"to": "a"}, **options}).encode()
    request = urllib.request.Request(f"http://{node.http}/enqueue", body, {"Content-Type": "application/json"})

    def post() -> str:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return str(json.load(answer)["id"])

    return await asyncio.to_thread(post)


DOORS = pytest.mark.parametrize("enqueue", [by_async_client, by_enqueue_many, by_client, by_http], ids=lambda door: door.__name__)


async def fields(node: Node, task: str) -> dict[str, Any]:
    async with AsyncClient(node.tcp) as client:
        info = (await client.get(task)).fields
        return {name: info[name] for name in DECLARED}


@DOORS
async def test_a_task_that_is_enqueued_by_name_has_the_options_of_its_function(enqueue: Enqueue) -> None:
    async with testing.broker() as node:
        async with testing.worker(app, node):
            await declared(node)
        assert await fields(node, await enqueue(node)) == DECLARED


@DOORS
async def test_what_a_request_says_itself_wins(enqueue: Enqueue) -> None:
    async with testing.broker() as node:
        async with testing.worker(app, node):
            await declared(node)
        task = await enqueue(node, queue="other", priority=9, max_attempts=1)
        assert await fields(node, task) == {**DECLARED, "queue": "other", "priority": 9, "max_attempts": 1}


async def test_what_was_declared_is_kept_through_a_restart(tmp_path: Path) -> None:
    async with testing.broker(data=tmp_path) as node, testing.worker(app, node):
        await declared(node)
    async with testing.broker(data=tmp_path) as node:
        assert await fields(node, await by_async_client(node)) == DECLARED


async def test_a_client_learns_what_is_declared_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskq.declared.TYPES_S", 0.0)
    async with testing.broker() as node, AsyncClient(node.tcp) as client:
        before = await client.enqueue("send", {"to": "a"})
        assert (await client.get(before.id)).fields["queue"] == "default"
        async with testing.worker(app, node):
            await declared(node)
        after = await client.enqueue("send", {"to": "a"})
        assert (await client.get(after.id)).fields["queue"] == "mail"


async def test_a_file_of_types_that_cannot_be_used_is_named_with_the_way_out(tmp_path: Path) -> None:
    for text in ("", "[]", '{"version": 9}', '{"version": 1, "task_types": [{"name": 1, "colour": 2}]}'):
        (tmp_path / "task_types.json").write_text(text)
        with pytest.raises(StartError, match=r"task_types.json: cannot be used: .*; restore it, or remove it"):
            async with testing.broker(data=tmp_path):
                pass


async def declared(node: Node) -> None:
    """Wait until the worker's declaration has arrived."""
    async with AsyncClient(node.tcp) as client, asyncio.timeout(20):
        while not await client.task_types():
            await asyncio.sleep(0.01)
