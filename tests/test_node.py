"""The node: what it takes, it gives back; what crashes in it is told; what it acknowledged is there at the next start."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import stat
import threading
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from taskq import App, AsyncClient, Discard, testing
from taskq.actors import store
from taskq.clock import ManualClock
from taskq.config import BrokerConfig
from taskq.core import line
from taskq.errors import DataFolderLocked, JournalCorrupt, KeyDamaged, NotFound
from taskq.node import Node
from taskq.storage.journal import FileJournal


def config(folder: Path, **settings: Any) -> BrokerConfig:
    return BrokerConfig(**{"data": str(folder), "listen": "127.0.0.1:0", "http": "127.0.0.1:0", "shards": 2, "ballast_bytes": 0, **settings})


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("taskq") or "Connection" in type(thread).__name__}


async def test_a_clean_stop_leaves_everything_in_the_store_and_an_empty_journal(tmp_path: Path) -> None:
    async with testing.broker(data=tmp_path, durability="fsync") as node, AsyncClient(node.tcp) as client:
        handle = await client.enqueue("work", {"a": 1})
        assert handle.durability == "fsync"
    assert list((tmp_path / "journal").iterdir()) == []
    async with testing.broker(data=tmp_path, shards=7) as node, AsyncClient(node.tcp) as client:
        assert (await client.get(handle.id)).payload == {"a": 1}


async def test_what_was_acknowledged_is_recovered_from_the_journal_alone(tmp_path: Path) -> None:
    node = Node(config(tmp_path))
    await node.start()
    async with AsyncClient(node.tcp) as client:
        handle = await client.enqueue("work", {"a": 1})
        node._crashed(RuntimeError("the power is gone"))
    await node.stop()
    async with testing.broker(data=tmp_path, shards=3) as node, AsyncClient(node.tcp) as client:
        assert (await client.get(handle.id)).state == "pending"


async def test_an_error_of_the_disk_stops_the_node_and_nothing_is_acknowledged_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(config(tmp_path))
    await node.start()
    async with AsyncClient(node.tcp, deadline=0.3) as client:
        await client.enqueue("work", {"a": 1})

        def full(journal: FileJournal) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(FileJournal, "sync", full)
        lost = asyncio.ensure_future(client.enqueue("work", {"a": 2}))
        with pytest.raises(OSError, match="No space"):
            await asyncio.wait_for(asyncio.shield(node.failed), 5)
        with pytest.raises(Exception, match="deadline"):
            await lost
    await node.stop()
    assert not node._status()["ready"]


async def test_a_data_folder_belongs_to_one_node(tmp_path: Path) -> None:
    first, second = Node(config(tmp_path)), Node(config(tmp_path))
    await first.start()
    with pytest.raises(DataFolderLocked, match="--data"):
        await second.start()
    await first.stop()
    await second.start()
    await second.stop()


async def test_two_nodes_live_in_one_process(tmp_path: Path) -> None:
    async with testing.broker(shards=2) as one, testing.broker(shards=3) as two, AsyncClient(one.tcp) as first, AsyncClient(two.tcp) as second:
        handle = await first.enqueue("work", {})
        assert (await first.get(handle.id)).state == "pending"
        with pytest.raises(NotFound):
            await second.get(handle.id)


async def test_a_start_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    before = threads()
    async with testing.broker() as other:
        node = Node(config(tmp_path, http=other.http))
        during = threads()
        with pytest.raises(OSError, match="address"):
            await node.start()
        assert threads() == during
    assert threads() == before
    async with testing.broker(data=tmp_path):
        pass


async def test_a_journal_that_was_damaged_after_it_was_synced_is_refused_with_path_and_offset(tmp_path: Path) -> None:
    node = Node(config(tmp_path))
    await node.start()
    async with AsyncClient(node.tcp) as client:
        for number in range(3):
            await client.enqueue("work", {"number": number})
        node._crashed(RuntimeError("the power is gone"))
    await node.stop()
    (segment,) = (tmp_path / "journal").iterdir()
    data = bytearray(segment.read_bytes())
    data[data.index(b"number")] ^= 0xFF
    segment.write_bytes(data)
    with pytest.raises(JournalCorrupt, match=rf"{segment}: damaged at offset \d+"):
        await Node(config(tmp_path)).start()
    assert segment.read_bytes() == data


async def test_a_torn_tail_is_cut_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    node = Node(config(tmp_path))
    await node.start()
    async with AsyncClient(node.tcp) as client:
        handle = await client.enqueue("work", {"a": 1})
        node._crashed(RuntimeError("the power is gone"))
    await node.stop()
    (segment,) = (tmp_path / "journal").iterdir()
    with segment.open("ab") as file:
        file.write(b"half of a batch")
    async with testing.broker(data=tmp_path) as node, AsyncClient(node.tcp) as client:
        assert (await client.get(handle.id)).state == "pending"
    assert "15 bytes at offset" in caplog.text


async def test_only_the_owner_can_read_the_data_folder(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    async with testing.broker(data=folder):
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [folder, *folder.iterdir()]}
    assert modes.pop("data") == 0o700 and modes.pop("journal") == 0o700
    assert set(modes.values()) == {0o600}


async def test_finished_tasks_are_forgotten_after_their_retention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PRUNE_S", 0.05)
    clock = ManualClock()
    settings: dict[str, Any] = {"retention_completed": "1h", "retention_failed": "1h"}
    async with testing.broker(clock=clock, **settings) as node, AsyncClient(node.tcp) as client:
        handle = await client.enqueue("work", {})
        await client.cancel(handle.id)
        clock.advance(7_200)
        with pytest.raises(NotFound):
            while True:
                await client.get(handle.id)


async def test_dead_letters_are_forgotten_after_their_retention_and_not_counted_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PRUNE_S", 0.05)
    clock, app = ManualClock(), App()

    @app.task
    async def hopeless() -> None:
        raise Discard("no")

    async with testing.broker(app, clock=clock, retention_failed="1h") as node, AsyncClient(node.tcp) as client:
        async with testing.worker(app, node):
            handle = await hopeless.enqueue()
            assert (await client.wait(handle, timeout=10)).state == "failed"
        assert [row["failed"] for row in await client.queues()] == [1]
        clock.advance(7_200)
        while (await client.queues())[0]["failed"]:
            await asyncio.sleep(0)
        with pytest.raises(NotFound):
            await client.get(handle.id)


async def test_the_store_takes_only_what_the_journal_has_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "FLUSH_S", 0.02)
    gate, synced = threading.Event(), FileJournal.sync

    def sync(journal: FileJournal) -> None:
        assert gate.wait(20)
        synced(journal)

    async with testing.broker(data=tmp_path, durability="os") as node, AsyncClient(node.tcp) as client:
        monkeypatch.setattr(FileJournal, "sync", sync)
        await client.enqueue("work", {})
        for _ in range(5):
            node._store.look()
            await asyncio.sleep(store.FLUSH_S)  # time for a flush that must not happen
        assert _rows(tmp_path) == 0
        gate.set()
        while not _rows(tmp_path):
            await client.queues()


def _rows(folder: Path) -> int:
    connection = sqlite3.connect(f"{(folder / 'store.sqlite').as_uri()}?mode=ro", uri=True)
    (rows,) = connection.execute("SELECT count(*) FROM tasks").fetchone()
    connection.close()
    return int(rows)


async def test_more_tasks_than_memory_takes_wait_in_the_store_and_come_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "LINE_HOT_MIN", 100)
    ran: list[int] = []
    app = App()

    @app.task
    async def note(number: int) -> None:
        ran.append(number)

    async with testing.broker(app, hot_bytes_max="1MiB") as node, AsyncClient(node.tcp) as client:
        await client.enqueue_many("note", [{"number": number} for number in range(10_000)])
        handle = await client.enqueue("note", {"number": 10_000})
        assert node.describe()["hot_bytes"] < 2 << 20
        while sum(len(actor.shard.tasks) for actor in node._shards) > 5_000:
            await client.queues()
        async with testing.worker(app, node, concurrency=1):
            await client.result(handle.id, timeout=60)
    assert ran == list(range(10_001))


async def test_an_idle_node_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "FLUSH_S", 0.05)
    async with testing.broker(data=tmp_path, durability="fsync") as node, AsyncClient(node.tcp) as client:
        handle = await client.enqueue("work", {})
        while node._store.flushed_lsn < node._journal.last_lsn:
            await client.get(handle.id)
        written = _written_bytes()
        await asyncio.sleep(0.5)  # time itself is what is tested: several intervals of the flush
        assert _written_bytes() == written


def _written_bytes() -> int:
    fields = dict(line.split(": ") for line in Path(f"/proc/{os.getpid()}/io").read_text().splitlines())
    return int(fields["write_bytes"])


async def test_sessions_that_are_over_are_forgotten() -> None:
    async with testing.broker(lease=0.6, heartbeat=0.2) as node:
        async with testing.worker(App(), node), AsyncClient(node.tcp) as client:
            while not await client.workers():
                await asyncio.sleep(0)
            assert len(node._consumers) == 1
        while node._consumers:
            await asyncio.sleep(0.01)


async def test_a_flush_keeps_nothing_of_its_rows(tmp_path: Path) -> None:
    node = Node(config(tmp_path))
    await node.start()
    shared = node._shards[0].shard.shared
    before = shared.before_change
    async with AsyncClient(node.tcp) as client:
        await client.enqueue("work", {"a": 1})
    await node.stop()
    assert shared.before_change is before


async def test_an_id_that_is_sent_again_over_http_runs_once_though_its_task_has_left_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "FLUSH_S", 0.01)
    async with testing.broker() as node:

        def ask(method: str, path: str, task: dict[str, Any] | None = None) -> Any:
            headers = {"Content-Type": "application/json"}
            request = urllib.request.Request(f"http://{node.http}{path}", json.dumps(task).encode() if task else None, headers, method=method)
            return json.loads(urllib.request.urlopen(request).read())

        first = await asyncio.to_thread(ask, "POST", "/enqueue", {"task_type": "work"})
        await asyncio.to_thread(ask, "DELETE", f"/v1/tasks/{first['id']}")
        async with asyncio.timeout(10):
            while any(bytes.fromhex(first["id"]) in actor.shard.tasks for actor in node._shards):
                await asyncio.sleep(0.01)
        again = await asyncio.to_thread(ask, "POST", "/enqueue", {"task_type": "work", "id": first["id"]})
        assert (again["id"], again["state"]) == (first["id"], "cancelled")


@pytest.mark.parametrize("size", [0, 1, 31, 33, 4_096])
async def test_a_key_of_another_size_is_refused_and_left_alone(tmp_path: Path, size: int) -> None:
    node = Node(config(tmp_path))
    await node.start()
    await node.stop()
    [path] = tmp_path.rglob("secret.key")
    path.write_bytes(bytes(size))
    with pytest.raises(KeyDamaged, match=f"it has {size} bytes and must have 32") as caught:
        await Node(config(tmp_path)).start()
    assert (caught.value.exit_code, path.read_bytes()) == (65, bytes(size))
    path.unlink()
    node = Node(config(tmp_path))
    await node.start()
    await node.stop()
    assert len(path.read_bytes()) == 32
