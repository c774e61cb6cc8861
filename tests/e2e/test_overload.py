"""Limits as clients meet them: over TCP and HTTP, at once, with a time to come back; and work that is there goes on."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from programs import WAIT_S

from taskq import App, AsyncClient, testing
from taskq.actors import disk, store
from taskq.config import MIB, BrokerConfig
from taskq.errors import DiskLow, NotFound, Overloaded, QueueFull
from taskq.node import Node

TASK = {"task_type": "work", "payload": {"number": 1}}


async def post(node: Node, body: Any) -> tuple[int, dict[str, str], Any]:
    """The answer to POST /enqueue: status, headers, body."""
    host, port = node.http.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    data = json.dumps(body).encode()
    head = (
        f"POST /enqueue HTTP/1.1\r\nHost: {node.http}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    )
    writer.write(head.encode() + data)
    answer = (await asyncio.wait_for(reader.read(), WAIT_S)).decode()
    writer.close()
    head, _, text = answer.partition("\r\n\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:])
    return int(head.split()[1]), headers, json.loads(text)


async def test_a_full_queue_is_429_over_http_and_queue_full_over_tcp() -> None:
    async with testing.broker(queue_tasks_max=2) as node, AsyncClient(node.tcp, deadline=0.2) as client:
        status, _, body = await post(node, [TASK, TASK, TASK])
        assert status == 201 and [each.get("error", {}).get("code") for each in body["tasks"]] == [None, None, "QUEUE_FULL"]
        status, headers, body = await post(node, TASK)
        error = body["error"]
        assert (status, headers["retry-after"], error["code"], error["retryable"]) == (429, "1", "QUEUE_FULL", True)
        with pytest.raises(QueueFull, match="queue_tasks_max"):
            await client.enqueue("work", {})
        assert (await post(node, {**TASK, "queue": "other"}))[0] == 201


async def test_a_client_waits_for_room_in_a_queue_as_long_as_its_deadline_allows() -> None:
    async with testing.broker(queue_tasks_max=1) as node, AsyncClient(node.tcp, deadline=10) as client:
        first = await client.enqueue("work", {})
        second = asyncio.ensure_future(client.enqueue("work", {}))
        await client.queues()
        assert not second.done()
        await client.cancel(first.id)
        assert (await (await second).info()).state == "pending"


async def test_a_queue_that_is_full_of_bytes_is_full() -> None:
    async with testing.broker(queue_bytes_max="1KiB") as node, AsyncClient(node.tcp, deadline=0.2) as client:
        await client.enqueue("work", {"text": "x" * 1_000})
        with pytest.raises(QueueFull, match="queue_bytes_max"):
            await client.enqueue("work", {"text": "x" * 100})


async def test_a_queue_too_many_is_429_and_may_come_later() -> None:
    async with testing.broker(queues_max=1) as node:
        assert (await post(node, TASK))[0] == 201
        status, _, body = await post(node, {**TASK, "queue": "other"})
        assert (status, body["error"]["code"], body["error"]["field"]) == (429, "QUEUES_FULL", "queue")


async def test_a_worker_never_has_more_tasks_than_it_may(tmp_path: Path) -> None:
    app, most, running = App(), 0, 0

    @app.task
    async def work() -> None:
        nonlocal most, running
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    async with testing.broker(app, leases_max=3) as node, testing.worker(app, node, concurrency=50), AsyncClient(node.tcp) as client:
        handles = await client.enqueue_many("work", [{} for _ in range(200)])
        await asyncio.gather(*(client.result(handle, timeout=20) for handle in handles))
        assert sum(len(held) for actor in node._shards for held in actor.shard.held.values()) == 0
    assert 1 <= most <= 3


async def test_a_disk_that_is_low_refuses_enqueues_only_and_admits_again_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    app, free = App(), 1 << 40

    @app.task
    async def work() -> str:
        return "done"

    monkeypatch.setattr(disk, "free_bytes", lambda folder: free)
    async with testing.broker(app) as node, AsyncClient(node.tcp, deadline=0.2) as client:
        waiting = await client.enqueue("work", {})
        delayed = await client.enqueue("work", {}, delay="1h")
        free = 1_000
        while node._status()["ready"]:
            await asyncio.sleep(0.01)
        with pytest.raises(DiskLow):
            await client.enqueue("work", {})
        status, headers, body = await post(node, TASK)
        assert (status, body["error"]["code"], body["error"]["retryable"], headers["retry-after"]) == (503, "DISK_LOW", True, "1")
        async with testing.worker(app, node):
            assert await client.result(waiting.id, timeout=10) == "done"
        assert await client.cancel(delayed.id) == "cancelled"
        free = 1 << 40
        assert (await client.enqueue("work", {}, deadline=10)).created


async def test_finished_tasks_that_fill_the_disk_make_room_for_new_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def free_bytes(folder: Path) -> int:
        return 64 * MIB - sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file() and path.exists())

    monkeypatch.setattr(disk, "free_bytes", free_bytes)
    monkeypatch.setattr(disk, "RECLAIM_S", 0.05)
    monkeypatch.setattr(store, "SHED_AGE_MS", 0)
    async with testing.broker(data=tmp_path, disk_free_bytes_min="32MiB", ballast_bytes=0) as node, AsyncClient(node.tcp, deadline=20) as client:
        tasks = []
        for _ in range(40):
            tasks.append(await client.enqueue("work", {"text": "x" * (MIB - 1_000)}))
            assert await client.cancel(tasks[-1].id) == "cancelled"
        with pytest.raises(NotFound):
            await tasks[0].info()
    assert "finished tasks were dropped before their retention had passed" in caplog.text


async def test_what_is_unfinished_or_ended_just_now_is_kept_on_a_low_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with testing.broker(data=tmp_path) as node, AsyncClient(node.tcp) as client:
        waiting = await client.enqueue("work", {})
        ended = await client.enqueue("work", {})
        assert await client.cancel(ended.id) == "cancelled"
        monkeypatch.setattr(store, "SHED_AGE_MS", 3_600_000)
        await _shed(node)
        assert (await ended.info()).state == "cancelled"
        monkeypatch.setattr(store, "SHED_AGE_MS", -1_000)
        await _shed(node)
        assert (await waiting.info()).state == "pending"
        with pytest.raises(NotFound):
            await ended.info()


async def _shed(node: Node) -> None:
    """Have finished tasks make room for more than there is, and wait until that is done."""
    done, shed = asyncio.Event(), node._store._shed

    async def telling() -> None:
        await shed()
        done.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(node._store, "_shed", telling)
        node._store.reclaim(1 << 40)
        await asyncio.wait_for(done.wait(), WAIT_S)


async def test_over_its_limit_of_memory_the_broker_refuses_new_tasks() -> None:
    async with testing.broker(memory_bytes_max="1MiB") as node:
        while node._status()["ready"]:
            await asyncio.sleep(0.01)
        status, _, body = await post(node, TASK)
        assert (status, body["error"]["code"]) == (503, "OVERLOADED") and "memory_bytes_max" in body["error"]["message"]


async def test_more_bytes_than_may_wait_for_the_store_are_overload(monkeypatch: pytest.MonkeyPatch) -> None:
    async with testing.broker(store_backlog_bytes_max="1MiB") as node, AsyncClient(node.tcp, deadline=0.2) as client:
        gate, commit = asyncio.Event(), node._store._store.commit

        async def slow(batch: Any) -> None:
            await gate.wait()
            await commit(batch)

        monkeypatch.setattr(node._store._store, "commit", slow)
        with pytest.raises(Overloaded, match="the store is behind"):
            while True:
                await client.enqueue("work", {"text": "x" * 100_000})
        gate.set()
        assert (await client.enqueue("work", {}, deadline=10)).created


@pytest.mark.parametrize("settings", [{"loop_delay_max": "0s"}, {"leases_max": 0}, {"queues_max": 0}, {"journal_delay_max": 0}])
def test_a_limit_that_would_stop_all_work_is_no_setting(settings: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="out of range"):
        BrokerConfig(**settings)


async def test_a_store_of_before_the_bytes_of_queues_were_kept_is_counted_once(tmp_path: Path) -> None:
    async with testing.broker(data=tmp_path) as node, AsyncClient(node.tcp) as client:
        await client.enqueue("work", {"text": "x" * 500})
        await client.enqueue("work", {"text": "x" * 500}, delay="1h")
    connection = sqlite3.connect(tmp_path / "store.sqlite")
    assert connection.execute("DELETE FROM meta WHERE name LIKE 'queue_bytes%'").rowcount == 2
    connection.commit()
    connection.close()
    for _ in range(2):
        async with testing.broker(data=tmp_path, queue_bytes_max="1020") as node, AsyncClient(node.tcp, deadline=0.2) as client:
            with pytest.raises(QueueFull):
                await client.enqueue("work", {"text": "x"})
