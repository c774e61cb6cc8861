"""Which queues a worker works on first, with a real broker and the project's own worker."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from taskq import App, current_task, testing

TASKS = 30


@pytest.mark.parametrize("shards", [1, 2, 4, 8])
@pytest.mark.parametrize("queues", [("critical", "default"), ("default", "critical"), ("x", "critical", "y", "default", "z")])
async def test_a_worker_works_on_its_queues_in_order_of_preference(shards: int, queues: tuple[str, ...]) -> None:
    app = App()
    ran: list[str] = []

    @app.task()
    async def note() -> None:
        ran.append(current_task().queue)

    async with testing.broker(app, shards=shards) as node:
        handles = [await note.options(queue=queue).enqueue() for queue in reversed(queues) for _ in range(TASKS)]
        async with testing.worker(app, node, concurrency=1, queues=queues):
            for handle in handles:
                await handle.result(timeout=20)
    assert ran == [queue for queue in queues for _ in range(TASKS)]


async def test_without_a_preference_all_queues_of_the_app_take_turns() -> None:
    app = App()
    ran: list[str] = []
    queues = ["a", "b", "c", "d"]

    def noting() -> Callable[[], None]:
        def note() -> None:
            ran.append(current_task().queue)

        return note

    tasks = [app.task(queue=queue, name=f"note_{queue}")(noting()) for queue in queues]
    async with testing.broker(app) as node:
        handles = [handle for task in tasks for handle in await task.enqueue_many([{}] * 2_000)]
        async with testing.worker(app, node, concurrency=1):
            await handles[-1].result(timeout=60)
    assert set(ran[: len(ran) // 2]) == set(queues)
