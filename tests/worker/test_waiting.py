"""A task that waits for a task of its own worker holds the slot which that one needs: refused at once, in every pool, and nowhere else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgpack
import pytest

from taskq import App, AsyncClient, Client, TaskFailed, serial, testing
from taskq.control import WaitInTask
from taskq.core.messages import MSGPACK
from taskq.node import Node
from taskq.waits import WAITS_IN_TASK
from taskq.worker import child
from taskq.worker.context import holding_a_slot
from taskq.worker.copies import Copies
from taskq.worker.job import Job
from taskq.worker.registry import TaskDefinition

WAIT_S = 20


class Family:
    """Tasks that wait for others, each in its own way; `elsewhere` is a queue that their worker does not take."""

    def __init__(self) -> None:
        self.app = app = App("localhost:1", deadline=10)
        self.node: Node
        self.later: list[asyncio.Task[Any]] = []

        @app.task
        async def leaf(number: int) -> int:
            return number + 1

        @app.task(queue="elsewhere")
        async def far(number: int) -> int:
            return number + 2

        @app.task
        async def awaits(number: int) -> int:
            return await (await leaf.enqueue(number)).result(WAIT_S)

        @app.task
        async def asks_a_client(number: int) -> int:
            async with AsyncClient(self.node.tcp) as client:
                return int(await client.result((await leaf.enqueue(number)).id, WAIT_S))

        @app.task
        def blocks(number: int) -> int:
            return leaf.enqueue_sync(number).result_sync(WAIT_S)

        @app.task
        def asks_a_blocking_client(number: int) -> int:
            with Client(self.node.tcp) as client:
                return int(client.result(client.enqueue("leaf", {"number": number}), WAIT_S))

        @app.task
        async def in_a_thread(number: int) -> int:
            handle = await leaf.enqueue(number)
            return await asyncio.to_thread(handle.result_sync, WAIT_S)

        @app.task
        async def goes_far(number: int) -> int:
            return await (await far.enqueue(number)).result(WAIT_S)

        @app.task
        async def reads(raw: str) -> Any:
            async with AsyncClient(self.node.tcp) as client:
                return await client.result(raw, WAIT_S)

        @app.task
        async def leaves_a_waiter(number: int) -> None:
            handle, over = await leaf.enqueue(number), asyncio.Event()

            async def wait() -> int:
                await over.wait()
                return await handle.result(WAIT_S)

            self.later.append(asyncio.create_task(wait()))
            asyncio.get_running_loop().call_later(0.2, over.set)

        @app.task
        async def calls_sync(number: int) -> None:
            leaf.enqueue_sync(number)

        self.leaf, self.far, self.goes_far, self.reads, self.leaves_a_waiter = leaf, far, goes_far, reads, leaves_a_waiter
        self.calls_sync = calls_sync
        self.waiting = {f.name: f for f in (awaits, asks_a_client, blocks, asks_a_blocking_client, in_a_thread)}


@pytest.fixture
async def family() -> AsyncIterator[Family]:
    family = Family()
    async with testing.broker(family.app) as family.node, testing.worker(family.app, family.node, concurrency=4, queues=("default",)):
        yield family


@pytest.mark.parametrize("name", ["awaits", "asks_a_client", "blocks", "asks_a_blocking_client", "in_a_thread"])
async def test_eight_parents_on_four_slots_fail_at_once_and_say_what_to_do(family: Family, name: str) -> None:
    parents = [await family.waiting[name].enqueue(number) for number in range(8)]
    for parent in parents:
        with pytest.raises(TaskFailed, match=r"may not wait for task [0-9a-f]{32} \(leaf\).*enqueue the next step"):
            await parent.result(WAIT_S)
        assert len((await parent.info()).fields["attempts"]) == 1, "the next attempt would fail in the same way"


async def test_a_task_may_wait_for_one_that_only_another_worker_takes(family: Family) -> None:
    async with testing.worker(family.app, family.node, queues=("elsewhere",)):
        assert await (await family.goes_far.enqueue(1)).result(WAIT_S) == 3


async def test_the_result_of_a_task_that_has_ended_is_read_anywhere(family: Family) -> None:
    handle = await family.leaf.enqueue(1)
    assert await handle.result(WAIT_S) == 2
    ended_ms = (await handle.info()).fields["finished_ms"]
    while family.node.clock.now_ms() <= ended_ms:
        await asyncio.sleep(0)
    assert await (await family.reads.enqueue(handle.id)).result(WAIT_S) == 2


async def test_what_a_task_has_left_behind_may_wait_when_the_task_is_over(family: Family) -> None:
    await (await family.leaves_a_waiter.enqueue(1)).result(WAIT_S)
    assert await asyncio.wait_for(family.later[0], WAIT_S) == 2


async def test_a_sync_call_in_an_async_task_fails_it_and_names_the_remedy(family: Family) -> None:
    handle = await family.calls_sync.options(max_attempts=1).enqueue(1)
    with pytest.raises(TaskFailed, match=r"await leaf\.enqueue"):
        await handle.result(WAIT_S)


def test_a_child_process_knows_the_queues_and_types_of_its_worker() -> None:
    def looks() -> list[Any]:
        held = holding_a_slot()
        assert held is not None
        run, worker = held
        assert run.queue == "email"
        return ["email" in worker.queues, "looks" in worker.task_types, "other" in worker.queues]

    tasks = {"looks": TaskDefinition("looks", looks)}
    job = Job(bytes(16), bytes(8), "email", tasks["looks"], serial.encode([]), MSGPACK, 1, 0, "process")
    fields = msgpack.unpackb(child.pack_job(job)[child.LENGTH.size :])
    outcome = child._run(tasks, ["email"], Copies(), fields)
    assert isinstance(outcome, bytes) and serial.decode(outcome, MSGPACK) == [True, True, False]
    assert holding_a_slot() is None


def test_the_error_is_told_as_one_that_no_retry_can_mend() -> None:
    assert not TaskDefinition("t", len).retryable(WaitInTask(WAITS_IN_TASK))
