"""`taskq.testing`: a test never reaches another broker, process tasks run, eager mode, run until idle."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from taskq import App, AsyncClient, Discard, Retry, Snooze, TaskFailed, current_task, testing
from taskq.clock import ManualClock
from taskq.errors import IdConflict, KeyConflict
from taskq.node import Node


@pytest.fixture
async def real() -> AsyncIterator[Node]:
    """The broker that no test may reach."""
    async with testing.broker() as node:
        yield node


async def enqueued(node: Node) -> int:
    async with AsyncClient(node.tcp) as client:
        return sum(row["pending"] for row in await client.queues())


def task_of(url: str) -> Any:
    app = App(url)

    @app.task
    async def send_email(to: str) -> str:
        return to

    return send_email


class TestAnAppThatWasUsedBefore:
    async def test_what_is_open_is_put_aside_and_given_back(self, real: Node) -> None:
        task = task_of(real.tcp)
        app = task.app

        async def enqueue_each_way() -> None:
            await task.enqueue(to="a")
            await task.enqueue_many([{"to": "a"}])
            await asyncio.to_thread(task.enqueue_sync, to="a")
            await asyncio.to_thread(task.enqueue_many_sync, [{"to": "a"}])
            await asyncio.to_thread(lambda: asyncio.run(task.enqueue(to="a")))

        await enqueue_each_way()
        assert await enqueued(real) == 5
        before = app.client()
        async with testing.broker(app) as node:
            await enqueue_each_way()
            assert (await enqueued(node), await enqueued(real)) == (5, 5)
            assert app.url == node.tcp
        assert app.client() is before, "the connections of before are there again"
        await enqueue_each_way()
        assert await enqueued(real) == 10
        await app.close()

    async def test_a_loop_of_another_thread_that_goes_on_is_served_too(self, real: Node) -> None:
        task = task_of(real.tcp)
        app = task.app
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()

        async def there() -> None:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(task.enqueue(to="a"), loop))

        await there()
        async with testing.broker(app) as node:
            await there()
            assert (await enqueued(node), await enqueued(real)) == (1, 1)
        await there()
        assert await enqueued(real) == 2
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(app.close(), loop))
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

    async def test_the_authorities_of_the_real_broker_do_not_matter(self) -> None:
        app = App("tls://broker.example:7000")
        async with testing.broker(app) as node:
            assert app.url == node.tcp
        assert app.url == "tls://broker.example:7000"

    async def test_the_broker_is_given_back_when_the_test_fails(self, real: Node) -> None:
        app = task_of(real.tcp).app
        with pytest.raises(ZeroDivisionError):
            async with testing.broker(app):
                raise ZeroDivisionError
        assert app.url == real.tcp

    async def test_use_refuses_while_connections_are_open(self, real: Node) -> None:
        app = task_of(real.tcp).app
        await app.client().queues()
        with pytest.raises(RuntimeError, match=r"connections to .* await app\.close"):
            app.use("127.0.0.1:1")
        await app.close()
        assert app.use("127.0.0.1:1") == real.tcp


async def test_a_process_task_runs_under_a_worker_of_tests() -> None:
    app = App()

    @app.task(pool="process")
    def square(n: int) -> list[Any]:
        return [n * n, current_task().task_type]

    async with testing.broker(app) as node, testing.worker(app, node):
        assert await (await square.enqueue(7)).result(10) == [49, "square"]


class TestRunUntilIdle:
    async def test_it_waits_for_what_tasks_enqueue(self) -> None:
        app, seen = App(), []

        @app.task
        async def chain(n: int) -> None:
            if n:
                await chain.enqueue(n - 1)
            seen.append(n)

        async with testing.broker(app) as node, testing.worker(app, node):
            await chain.enqueue(5)
            await testing.run_until_idle(node)
            assert sorted(seen) == [0, 1, 2, 3, 4, 5]

    async def test_it_leaves_what_is_scheduled_to_the_clock(self) -> None:
        app, clock, seen = App(), ManualClock(), []

        @app.task
        async def later() -> None:
            seen.append(1)

        async with testing.broker(app, clock=clock) as node, testing.worker(app, node):
            await later.options(delay="1h").enqueue()
            await testing.run_until_idle(node)
            assert seen == []
            await testing.advance(node, clock, "1h")
            await testing.run_until_idle(node)
            assert seen == [1]

    async def test_it_says_what_does_not_end(self) -> None:
        task = task_of("127.0.0.1:1")
        app = task.app
        async with testing.broker(app) as node:
            await task.enqueue(to="a")
            with pytest.raises(TimeoutError, match="1 pending and 0 running in queue default"):
                await testing.run_until_idle(node, timeout=0.05)


@pytest.fixture
def app() -> App:
    return App("127.0.0.1:1")


class TestEager:
    def test_code_without_a_loop_gets_the_result_from_the_handle(self, app: App) -> None:
        @app.task
        def double(n: int) -> int:
            return 2 * n

        @app.task
        async def quadruple(n: int) -> int:
            await asyncio.sleep(0)
            return 4 * n

        @app.task(pool="process")
        def sextuple(n: int) -> int:
            return 6 * n

        with testing.eager(app):
            for task, factor in ((double, 2), (quadruple, 4), (sextuple, 6)):
                handle = task.enqueue_sync(7)
                assert (handle.result_sync(), handle.state_sync(), handle.created) == (factor * 7, "completed", True)
                assert [each.result_sync() for each in task.enqueue_many_sync([{"n": 1}, {"n": 2}])] == [factor, 2 * factor]

    async def test_code_on_a_loop_does_so_too(self, app: App) -> None:
        @app.task
        def double(n: int) -> int:
            return 2 * n

        @app.task
        async def more(n: int) -> int:
            return await (await double.enqueue(n)).result() + 1

        with testing.eager(app):
            handle = await more.enqueue(7)
            assert (await handle.result(), await handle.state(), await handle.cancel()) == (15, "completed", "already_final")

    async def test_a_sync_call_on_a_loop_is_refused_as_with_a_broker(self, app: App) -> None:
        @app.task
        def double(n: int) -> int:
            return 2 * n

        with testing.eager(app), pytest.raises(RuntimeError, match="event loop"):
            double.enqueue_sync(1)

    def test_arguments_and_results_become_what_arrives_on_a_worker(self, app: App) -> None:
        @app.task
        def kind(value: Any) -> list[str]:
            return [type(value).__name__, current_task().task_type]

        @app.task
        def odd() -> object:
            return object()

        with testing.eager(app):
            assert kind.enqueue_sync((1, 2)).result_sync() == ["list", "kind"]
            with pytest.raises(TypeError, match="argument 'value' of kind"):
                kind.enqueue_sync(object())
            with pytest.raises(TaskFailed, match="cannot be serialised"):
                odd.enqueue_sync().result_sync()

    @pytest.mark.parametrize(("error", "attempts"), [(ValueError("x"), 3), (KeyError("x"), 1), (Discard("no"), 1), (Retry(after="1h"), 3)], ids=repr)
    def test_exceptions_follow_the_settings_of_the_task(self, app: App, error: Exception, attempts: int) -> None:
        seen: list[int] = []

        @app.task(max_attempts=3, no_retry_on=KeyError)
        def fail() -> None:
            seen.append(current_task().attempt)
            raise error

        with testing.eager(app):
            handle = fail.enqueue_sync()
            assert (handle.state_sync(), seen) == ("failed", list(range(1, attempts + 1)))
            with pytest.raises(TaskFailed):
                handle.result_sync()
            assert len(handle.info_sync().fields["attempts"]) == attempts

    def test_content_is_compared_as_a_broker_does_and_an_id_conflicts_as_an_id(self, app: App) -> None:
        @app.task
        def sum_of(a: int, b: int) -> int:
            return a + b

        with testing.eager(app):
            first = sum_of.options(key="k").enqueue_sync(a=1, b=2)
            assert sum_of.options(key="k").enqueue_sync(b=2, a=1).id == first.id
            assert sum_of.options(id=first.id).enqueue_sync(b=2, a=1).id == first.id
            with pytest.raises(IdConflict):
                sum_of.options(id=first.id).enqueue_sync(a=1, b=3)
            with pytest.raises(IdConflict):
                sum_of.options(id=first.id, queue="other").enqueue_sync(a=1, b=2)

    def test_a_second_attempt_can_succeed_and_a_snooze_is_over_at_once(self, app: App) -> None:
        seen: list[int] = []

        @app.task
        def at_last() -> int:
            seen.append(1)
            if len(seen) == 1:
                raise OSError
            if len(seen) == 2:
                raise Snooze("1h")
            return current_task().attempt

        with testing.eager(app):
            assert at_last.options(delay="1h").enqueue_sync().result_sync() == 2

    def test_a_task_that_snoozes_for_ever_is_ended(self, app: App) -> None:
        @app.task
        def never() -> None:
            raise Snooze("1h")

        with testing.eager(app), pytest.raises(RuntimeError, match="snoozed 100 times"):
            never.enqueue_sync()

    def test_an_async_attempt_has_its_timeout(self, app: App) -> None:
        @app.task(timeout=0.01, max_attempts=1)
        async def endless() -> None:
            await asyncio.Event().wait()

        with testing.eager(app), pytest.raises(TaskFailed, match=r"longer than its timeout of 0\.01 s"):
            endless.enqueue_sync().result_sync()

    def test_a_key_makes_one_task(self, app: App) -> None:
        @app.task
        def once(n: int) -> int:
            return n

        with testing.eager(app):
            first = once.options(key="k").enqueue_sync(1)
            again = once.options(key="k").enqueue_sync(1)
            assert (again.id, again.created) == (first.id, False)
            with pytest.raises(KeyConflict, match="'k'"):
                once.options(key="k").enqueue_sync(2)

    def test_the_caller_is_no_task_afterwards(self, app: App) -> None:
        @app.task
        def named() -> str:
            return current_task().task_type

        with testing.eager(app):
            assert named.enqueue_sync().result_sync() == "named"
            with pytest.raises(LookupError):
                current_task()

    def test_the_app_is_as_before_afterwards(self, app: App) -> None:
        with testing.eager(app):
            assert app.url != "127.0.0.1:1"
        assert app.url == "127.0.0.1:1"
