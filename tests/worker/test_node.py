"""A worker process with a real broker: the whole way of a task, in every pool, and every way in which a run can end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from taskq import AsyncClient, TaskFailed, testing
from taskq.node import Node

RESULT_S = 20.0
APP = """
import asyncio, os, signal, time
from pathlib import Path
from taskq import App, Discard, Retry, Snooze, current_task
app = App()

@app.task()
async def add(a: int, b: int) -> int: return a + b

@app.task()
def thread_add(a: int, b: int) -> int: return a + b

@app.task(pool="process")
def process_add(a: int, b: int) -> list: return [a + b, os.getpid(), os.getppid()]

@app.task(timeout=0.2, max_attempts=1)
async def slow(): await asyncio.sleep(60)

@app.task(timeout=0.2, max_attempts=1)
def slow_thread(): time.sleep(3)

@app.task(timeout=0.5, max_attempts=1, pool="process")
def slow_process(): time.sleep(60)

@app.task(pool="process", max_attempts=1)
def crash(): os.kill(os.getpid(), signal.SIGSEGV)

@app.task()
async def wait_for(path: str) -> str:
    Path(path + ".started").write_text(str(os.getpid()))
    while not Path(path).exists(): await asyncio.sleep(0.01)
    return "came"

@app.task()
def discard(): raise Discard("never works")

@app.task(backoff_base=0.01, backoff_factor=1.0, backoff_max=0.01)
async def second_time() -> int:
    if current_task().attempt == 1: raise ValueError("first time")
    return current_task().attempt

gate = asyncio.Event()

@app.task(max_attempts=1)
async def fail_together(of: int, began=[]):
    began.append(1)
    if len(began) == of: gate.set()
    await gate.wait()
    raise ValueError("語" * 4_000)

@app.task()
async def kill_worker(path: str):
    if not Path(path).exists():
        Path(path).write_text("")
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"
"""


@pytest.fixture
def app_source() -> tuple[str, str]:
    return "node_app", APP


@asynccontextmanager
async def client_of(node: Node) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(node.tcp) as client:
        yield client


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with testing.broker() as node:
        yield node


@pytest.fixture
async def client(node: Node) -> AsyncIterator[AsyncClient]:
    async with client_of(node) as client:
        yield client


async def appears(path: Path) -> str:
    async with asyncio.timeout(RESULT_S):
        while not path.exists() or not path.read_text():
            await asyncio.sleep(0.01)
    return path.read_text()


async def test_tasks_of_all_pools_are_run_by_one_worker(node: Node, client: AsyncClient, worker: Any) -> None:
    await worker.start(node.tcp)
    handles = [await client.enqueue(name, {"a": 1, "b": 2}) for name in ("add", "thread_add", "process_add")]
    added, in_thread, in_process = [await handle.result(timeout=RESULT_S) for handle in handles]
    assert (added, in_thread, in_process[0]) == (3, 3, 3)
    (row,) = await client.workers()
    assert in_process[1] != in_process[2] and row["concurrency"] == 4
    code, errors = await worker.stop()
    assert code == 0, errors


async def test_errors_that_are_together_larger_than_a_frame_are_each_reported_once(node: Node, client: AsyncClient, worker: Any) -> None:
    """600 of 12,000 bytes each, if nobody cut them."""
    await worker.start(node.tcp, concurrency=600)
    handles = await client.enqueue_many("fail_together", [{"of": 600}] * 600, max_attempts=1)
    ends = await asyncio.gather(*(handle.result(timeout=3 * RESULT_S) for handle in handles), return_exceptions=True)
    assert {type(end) for end in ends} == {TaskFailed} and all("語" in str(end) for end in ends)
    info = await handles[-1].info()
    assert [attempt["outcome"] for attempt in info.fields["attempts"]] == ["failed"]
    code, errors = await worker.stop()
    assert code == 0, errors


async def test_many_tasks_are_each_run_once(node: Node, client: AsyncClient, worker: Any) -> None:
    await worker.start(node.tcp, concurrency=50)
    handles = await client.enqueue_many("add", [{"a": number, "b": 1} for number in range(5_000)])
    results = [await handle.result(timeout=RESULT_S) for handle in handles[::100]]
    assert await handles[-1].result(timeout=RESULT_S) == 5_000
    assert results == [number + 1 for number in range(0, 5_000, 100)]
    info = await handles[-1].info()
    assert [attempt["outcome"] for attempt in info.fields["attempts"]] in ([], ["completed"])


@pytest.mark.parametrize("name", ["slow", "slow_thread", "slow_process"])
async def test_an_attempt_that_takes_too_long_fails_with_a_timeout(node: Node, client: AsyncClient, worker: Any, name: str) -> None:
    await worker.start(node.tcp)
    handle = await client.enqueue(name, {}, max_attempts=1)
    with pytest.raises(TaskFailed):
        await handle.result(timeout=RESULT_S)
    assert (await handle.info()).fields["attempts"][-1]["error_type"] == "TimeoutError"


async def test_a_crash_of_a_process_task_is_charged_to_it_alone(node: Node, client: AsyncClient, worker: Any, tmp_path: Path) -> None:
    await worker.start(node.tcp)
    other = await client.enqueue("wait_for", {"path": str(tmp_path / "go")})
    await appears(tmp_path / "go.started")
    guilty = await client.enqueue("crash", {}, max_attempts=1)
    with pytest.raises(TaskFailed):
        await guilty.result(timeout=RESULT_S)
    last = (await guilty.info()).fields["attempts"][-1]
    assert last["error_type"] == "WorkerCrash" and "SIGSEGV" in last["error"]
    (tmp_path / "go").write_text("")
    assert await other.result(timeout=RESULT_S) == "came"


async def test_what_a_function_raises_decides_what_comes_next(node: Node, client: AsyncClient, worker: Any) -> None:
    await worker.start(node.tcp)
    again = await client.enqueue("second_time", {}, retry=(0.01, 1.0, 0.01))
    never = await client.enqueue("discard", {})
    assert await again.result(timeout=RESULT_S) == 2
    with pytest.raises(TaskFailed, match="never works"):
        await never.result(timeout=RESULT_S)


async def test_a_running_task_can_be_cancelled(node: Node, client: AsyncClient, worker: Any, tmp_path: Path) -> None:
    await worker.start(node.tcp)
    handle = await client.enqueue("wait_for", {"path": str(tmp_path / "go")})
    await appears(tmp_path / "go.started")
    await handle.cancel()
    assert (await client.wait(handle, timeout=RESULT_S)).state == "cancelled"


async def test_a_stopping_worker_gives_its_tasks_back_uncharged(node: Node, client: AsyncClient, worker: Any, tmp_path: Path) -> None:
    await worker.start(node.tcp, drain_s=0.1)
    handle = await client.enqueue("wait_for", {"path": str(tmp_path / "go")})
    await appears(tmp_path / "go.started")
    code, errors = await worker.stop()
    assert code == 0, errors
    info = await handle.info()
    assert info.state == "pending"
    assert [attempt["outcome"] for attempt in info.fields["attempts"]] == ["interrupted"]
    (tmp_path / "go").write_text("")
    await worker.start(node.tcp)
    assert await handle.result(timeout=RESULT_S) == "came"


async def test_the_tasks_of_a_killed_runner_run_again_soon(node: Node, client: AsyncClient, worker: Any, tmp_path: Path) -> None:
    await worker.start(node.tcp)
    handle = await client.enqueue("kill_worker", {"path": str(tmp_path / "killed")})
    assert await handle.result(timeout=RESULT_S) == "survived"
    first = (await handle.info()).fields["attempts"][0]
    assert first["outcome"] == "crashed" and "SIGKILL" in first["error"]


async def test_results_survive_a_restart_of_the_broker(worker: Any, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    async with testing.broker(data=data, durability="fsync") as node, client_of(node) as client:
        address = node.tcp
        await worker.start(address)
        handle = await client.enqueue("wait_for", {"path": str(tmp_path / "go")})
        await appears(tmp_path / "go.started")
    (tmp_path / "go").write_text("")
    async with testing.broker(data=data, durability="fsync", listen=address) as node, client_of(node) as client:
        assert await client.result(handle.id, timeout=RESULT_S) == "came"
        assert len([one for one in (await client.get(handle.id)).fields["attempts"] if one["outcome"] == "crashed"]) == 0
